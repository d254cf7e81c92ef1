"""Packed and plain products are the same product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.cloud.linear import HalfLinear, Linear, PackedLinear, PlainLinear, is_half, linear

sizes = st.integers(1, 70)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal, and always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [linear, HalfLinear, PackedLinear, PlainLinear])
@settings(max_examples=40, deadline=None)
@given(rows=sizes, inner=sizes, out=sizes, biased=st.booleans(), seed=st.integers(0, 99))
def test_products_are_those_of_the_definition(
    kind: type[Linear], rows: int, inner: int, out: int, biased: bool, seed: int
) -> None:
    # As checkpoints have it: sixteen bits.
    weight = drawn(out, inner, seed=seed).to(torch.bfloat16).float()
    bias = drawn(out, seed=seed + 1) if biased else None
    inputs, added = drawn(rows, inner, seed=seed + 2), drawn(rows, out, seed=seed + 3)
    expected = inputs.double() @ weight.double().t() + (0 if bias is None else bias.double())
    product = kind(weight, bias)  # type: ignore[call-arg]
    torch.testing.assert_close(product(inputs).double(), expected, rtol=1e-4, atol=1e-4)
    if isinstance(product, PackedLinear):
        total = product.add_to(added, inputs).double()
        torch.testing.assert_close(total, added.double() + expected, rtol=1e-4, atol=1e-4)


def test_half_precision_is_multiplied_as_well_as_it_can_be() -> None:
    weight, inputs = drawn(48, 32), drawn(5, 32, seed=1)
    for dtype in (torch.bfloat16, torch.float16):
        product = linear(weight.to(dtype))(inputs.to(dtype))
        assert product.dtype is dtype
        torch.testing.assert_close(product.float(), inputs @ weight.t(), rtol=0.05, atol=0.3)


def test_the_weight_may_be_forgotten() -> None:
    weight = drawn(16, 16)
    packed, expected = linear(weight), torch.ones(1, 16) @ weight.t()
    weight.zero_()
    torch.testing.assert_close(packed(torch.ones(1, 16)), expected)


def test_only_what_sixteen_bits_hold_is_kept_in_sixteen_bits() -> None:
    stored = drawn(40, 30).mul_(0.02).to(torch.bfloat16).float()
    stored[stored.abs() < 2.0**-16] = 2.0**-16  # what float16 holds less well than bfloat16
    assert isinstance(linear(stored), HalfLinear)
    full = drawn(40, 30, seed=1)
    large, lone = stored.clone(), stored.clone()
    large[3, 4] = 1e5
    lone[39] = full[39]
    for weight in (full, large, lone):
        assert not is_half(weight)
        product = linear(weight)
        torch.testing.assert_close(product(torch.eye(30)), weight.t())

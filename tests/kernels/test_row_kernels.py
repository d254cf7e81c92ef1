"""Norm, SwiGLU and rotation with the KV write: the Triton kernels give what their references give."""

from __future__ import annotations

import functools

import pytest
import torch

from tiermesh.kernels import rms_norm, rope_kv_write, swiglu

TOLERANCE = {
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}
TYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


class Draw:
    """Seeded tensors on a device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(7)
        self._device, self._dtype = device, dtype

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(self._device, self._dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (3, 60), (5, 127), (2, 1031)])
@pytest.mark.parametrize("added", [False, True])
def test_rms_norm(device: torch.device, dtype: torch.dtype, rows: int, width: int, added: bool) -> None:
    from tiermesh.kernels import rms_norm_triton

    draw = Draw(device, dtype)
    wide = draw(rows, width + 3)
    inputs, weight, residual = wide[:, :width], draw(width), draw(rows, width) if added else None
    total, out = rms_norm_triton.rms_norm(inputs, weight, 1e-5, residual)
    expected_total, expected = rms_norm.rms_norm(inputs, weight, 1e-5, residual)
    torch.testing.assert_close(total, expected_total, rtol=0, atol=0)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])


def test_a_norm_of_nothing_is_nothing(device: torch.device) -> None:
    from tiermesh.kernels import rms_norm_triton

    for norm in (rms_norm.rms_norm, rms_norm_triton.rms_norm):
        _, out = norm(torch.zeros(2, 7, device=device), torch.ones(7, device=device), 1e-6)
        assert not out.any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 60), (16, 384), (130, 127)])
def test_the_norm_by_a_product_is_that_of_the_definition(shape: tuple[int, int]) -> None:
    rows, weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 5, torch.linspace(-1, 2, shape[1])
    wide = rows.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm.normalize(rows, weight, 1e-5).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width", "tile"), [(0, 5, 8), (1, 1, 8), (3, 37, 16), (2, 64, 64)])
def test_swiglu(device: torch.device, dtype: torch.dtype, rows: int, width: int, tile: int) -> None:
    from tiermesh.kernels import swiglu_triton

    gate_up = Draw(device, dtype)(rows, 2 * width) * 30
    out = swiglu_triton.swiglu(gate_up, tile)
    torch.testing.assert_close(out, swiglu.swiglu(gate_up), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "tile"),
    [(1, 1, 1, 2, 4), (3, 7, 1, 10, 4), (2, 5, 5, 16, 8), (4, 6, 3, 24, 2), (0, 2, 1, 4, 4)],
)
@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_kv_write(
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    tile: int,
    normed: bool,
) -> None:
    from tiermesh.kernels import rope_kv_write_triton

    draw = Draw(device, dtype)
    qkv = draw(rows, (heads + 2 * kv_heads) * head_dim)
    angles = torch.randn(rows, 1, head_dim // 2, generator=torch.Generator().manual_seed(1))
    turn = torch.polar(torch.ones_like(angles), angles).to(device)
    norms = (draw(head_dim), draw(head_dim)) if normed else None
    slots = torch.tensor([17, 3, 0, 18][:rows], device=device, dtype=torch.int64)
    results = []
    for op in (rope_kv_write.rope_kv_write, functools.partial(rope_kv_write_triton.rope_kv_write, tile=tile)):
        kv = torch.full((4, 5, 2, kv_heads, head_dim), float("nan"), device=device, dtype=dtype)
        turned = qkv.clone()
        op(turned, turn, slots, kv, norms, 1e-6)
        results.append((turned[:, : heads * head_dim], kv))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True, **TOLERANCE[dtype])
    assert results[1][1].isfinite().flatten(2).all(-1).sum() == rows, "slots that no row names were written"

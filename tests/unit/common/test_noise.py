"""The noise against published vectors, against torch, and against the distribution it claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.common.noise import gumbel, philox, random_words
from tiermesh.kernels import noise as torch_noise

ONES = 0xFFFFFFFF
# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, output.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected
    words = torch_noise.philox(
        tuple(torch.tensor([w]) for w in counter),  # type: ignore[arg-type]
        (torch.tensor([key[0]]), torch.tensor([key[1]])),
    )
    assert tuple(int(word) for word in words) == expected


def as_int64(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 2**31), vocab=st.integers(1, 300))
def test_torch_gives_the_same_noise(seed: int, index: int, vocab: int) -> None:
    seeds, indices = torch.tensor([as_int64(seed)]), torch.tensor([index])
    ids = np.arange(vocab)
    assert np.array_equal(torch_noise.random_words(seeds, indices, vocab)[0].numpy(), random_words(seed, index, ids))
    assert np.array_equal(torch_noise.gumbel(seeds, indices, vocab)[0].numpy(), gumbel(seed, index, ids))


def test_backends_agree_on_a_million_variates() -> None:
    seeds = [3, 2**63 + 11, 2**64 - 1, 0x0123456789ABCDEF]
    ours = np.stack([gumbel(seed, 7, np.arange(262_144)) for seed in seeds])
    theirs = torch_noise.gumbel(torch.tensor([as_int64(s) for s in seeds]), torch.full((4,), 7), 262_144).numpy()
    assert np.count_nonzero(ours != theirs) <= 1
    assert np.abs(ours - theirs).max() < 1e-5


def test_any_subset_in_any_order_has_the_noise_of_the_whole() -> None:
    whole = gumbel(42, 5, np.arange(1000))
    chosen = np.random.default_rng(0).permutation(1000)[:77]
    assert np.array_equal(gumbel(42, 5, chosen), whole[chosen])
    assert gumbel(42, 5, 3) == whole[3]


def test_given_ids_have_the_noise_of_the_whole() -> None:
    seeds, indices = torch.tensor([as_int64(2**64 - 5), 3]), torch.tensor([9, 0])
    whole = torch_noise.gumbel(seeds, indices, 1001)
    ids = torch.stack([torch.randperm(1001, generator=torch.Generator().manual_seed(i))[:77] for i in range(2)])
    assert torch.equal(torch_noise.gumbel_at(seeds, indices, ids), whole.gather(1, ids))


def test_extremes_are_finite_and_bounded() -> None:
    for word, bound in ((0, 22.874), (ONES, -3.130)):
        uniform = (word + 0.5) * 2.0**-32
        variate = -np.log(-np.log1p(-uniform))
        assert np.isfinite(variate)
        assert abs(variate - bound) < 0.001


def test_argmax_draws_from_the_softmax() -> None:
    """Chi-square at 5 degrees of freedom: 20.5 is the 99.9 % point; a wrong scale of the noise must exceed it."""
    logits = np.array([1.0, 0.0, -1.0, 0.5, 2.0, -0.5])
    expected = np.exp(logits) / np.exp(logits).sum() * 20_000
    noise = np.stack([gumbel(9, index, np.arange(6)) for index in range(20_000)])

    def statistic(scale: float) -> float:
        counts = np.bincount((logits + scale * noise).argmax(axis=1), minlength=6)
        return float(((counts - expected) ** 2 / expected).sum())

    assert statistic(1.0) < 20.5
    assert statistic(0.9) > 20.5

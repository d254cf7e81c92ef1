"""The shared noise in torch, for a whole batch over a whole vocabulary; see `tiermesh.common.noise` for what it is.

torch has no unsigned 32-bit arithmetic, so words are int64 below 2³². The product of two of them reaches 2⁶⁴ and
would overflow, so one factor is split into 16-bit halves. On a CPU the integers come from numpy, which has the unsigned
product and works in place: of a row of 4 k ids 0.18 instead of 0.9 ms, of sixteen 1.0 instead of 3.2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..common.noise import KEY_STEPS, MULTIPLIERS, ROUNDS, SAMPLING_STREAM

_MASK = 0xFFFFFFFF


def _multiply(words: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of `words` (int64 below 2³²) times a 32-bit constant."""
    low = (multiplier & 0xFFFF) * words
    high = (multiplier >> 16) * words + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10; all words are int64 tensors below 2³² that broadcast. Returns the four words of the output."""
    a, b, c, d = counter
    low, high = key
    for _ in range(ROUNDS):
        left_high, left_low = _multiply(a, MULTIPLIERS[0])
        right_high, right_low = _multiply(c, MULTIPLIERS[1])
        a, b, c, d = right_high ^ b ^ low, right_low, left_high ^ d ^ high, left_low
        low, high = (low + KEY_STEPS[0]) & _MASK, (high + KEY_STEPS[1]) & _MASK
    return a, b, c, d


def random_words(seeds: Tensor, indices: Tensor, vocab_size: int, stream: int = SAMPLING_STREAM) -> Tensor:
    """The integers behind the noise: int64 [B, V] below 2³², for int64 `seeds` (bit patterns) [B] and `indices` [B]."""
    blocks = torch.arange((vocab_size + 3) // 4, device=seeds.device)[None]
    return _lanes(seeds, indices, blocks, stream).flatten(1)[:, :vocab_size]


def _lanes(seeds: Tensor, indices: Tensor, blocks: Tensor, stream: int) -> Tensor:
    """The four words of each block of four ids: int64 [B, N, 4] for `blocks` [B or 1, N]."""
    if seeds.device.type == "cpu":
        return torch.from_numpy(_lanes_numpy(seeds.numpy(), indices.numpy(), blocks.numpy(), stream))
    index = indices[:, None]
    key = (seeds & _MASK)[:, None], (seeds >> 32 & _MASK)[:, None]
    return torch.stack(philox((index, blocks, torch.full_like(index, stream), torch.zeros_like(index)), key), dim=-1)


def _lanes_numpy(
    seeds: npt.NDArray[np.int64], indices: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64], stream: int
) -> npt.NDArray[np.int64]:
    """The same in place: what bounds it is memory."""
    mask, shift = np.uint64(_MASK), np.uint64(32)
    shape = len(seeds), blocks.shape[1]
    words = np.empty((4, *shape), np.uint64)
    words[0], words[1], words[2], words[3] = indices[:, None], blocks, stream, 0
    a, b, c, d = words
    left, right = np.empty_like(a), np.empty_like(a)
    keys = seeds.view(np.uint64)[:, None]
    low, high = keys & mask, keys >> shift
    for _ in range(ROUNDS):
        np.multiply(a, np.uint64(MULTIPLIERS[0]), out=left)
        np.multiply(c, np.uint64(MULTIPLIERS[1]), out=right)
        np.right_shift(right, shift, out=a)
        a ^= b
        a ^= low
        np.bitwise_and(right, mask, out=b)
        np.right_shift(left, shift, out=c)
        c ^= d
        c ^= high
        np.bitwise_and(left, mask, out=d)
        low, high = (low + np.uint64(KEY_STEPS[0])) & mask, (high + np.uint64(KEY_STEPS[1])) & mask
    return np.moveaxis(words, 0, -1).copy().view(np.int64)


def gumbel(seeds: Tensor, indices: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, float32 [B, V]: row b is that of seed `seeds[b]` at answer index `indices[b]`.

    Seeds are int64 holding the 64 bits of the unsigned seed.
    """
    return _variates(random_words(seeds, indices, vocab_size))


def gumbel_at(seeds: Tensor, indices: Tensor, ids: Tensor) -> Tensor:
    """The same noise of given `ids` alone, int64 [B, K]; float32 [B, K]."""
    words = _lanes(seeds, indices, ids >> 2, SAMPLING_STREAM)
    return _variates(words.gather(-1, (ids & 3)[..., None])[..., 0])


def _variates(words: Tensor) -> Tensor:
    uniform = (words.to(torch.float64) + 0.5) * 2.0**-32
    return torch.log1p(uniform.neg_()).neg_().log_().neg_().to(torch.float32)

"""The noise that all hops share: Gumbel variates that depend only on (seed, answer index, token id).

Whoever samples with it takes `argmax over the allowed ids of (logit / T + gumbel)`, which is an exact draw from the
softmax of the allowed logits (the Gumbel-max trick). Two models that use the same noise pick the same id as often as
their distributions allow, so a draft is verified by equality with the target's own choice.

The integers come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): key = the
seed's low and high word, counter = (index, id div 4, stream, 0), lane = id mod 4. The variate is
g = −log(−log1p(−u)) with u = (x + 0.5)·2⁻³²: in this form rounding can only make an id lose, never win.

`tiermesh.kernels.noise` is the same in torch. Both compute u and the two logarithms in float64 and round once, to
float32: their logarithms may differ in the last bit of 53, which the rounding to 24 hides but in about one of 10⁸.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SAMPLING_STREAM = 0
"""Third counter word of the noise that draws tokens."""

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
"""Constants of Philox4x32: one multiplier per half of the counter, one key increment per half of the key."""

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

Words = npt.NDArray[np.uint64]


def philox(counter: Sequence[npt.ArrayLike], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of four counter words (scalars or arrays that broadcast to shape S) under a key of two words.

    Returns uint32 of shape (4, *S).
    """
    a, b, c, d = (np.asarray(word, dtype=np.uint64) for word in counter)
    low, high = key
    for _ in range(ROUNDS):
        left, right = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, b, c, d = (
            (right >> _SHIFT) ^ b ^ np.uint64(low),
            right & _MASK,
            (left >> _SHIFT) ^ d ^ np.uint64(high),
            left & _MASK,
        )
        low, high = (low + KEY_STEPS[0]) & 0xFFFFFFFF, (high + KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack(np.broadcast_arrays(a, b, c, d)).astype(np.uint32)


def random_words(seed: int, index: int, ids: npt.ArrayLike, stream: int = SAMPLING_STREAM) -> npt.NDArray[np.uint32]:
    """The 32-bit integer behind each id's noise at answer index `index`; `seed` is a 64-bit integer."""
    wanted = np.asarray(ids, dtype=np.int64)
    blocks = philox((index, wanted >> 2, stream, 0), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    words: npt.NDArray[np.uint32] = np.take_along_axis(blocks, (wanted & 3)[None], axis=0)[0]
    return words


def gumbel(seed: int, index: int, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Standard Gumbel noise of `ids` (any shape) at answer index `index`, 0 being the first answer token.

    float32 of the shape of `ids`, between −3.14 and 22.88.
    """
    uniform = (random_words(seed, index, ids).astype(np.float64) + 0.5) * 2.0**-32
    return (-np.log(-np.log1p(-uniform))).astype(np.float32)

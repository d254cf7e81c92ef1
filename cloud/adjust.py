"""Logit bias and penalties of a whole batch. Sparse: only the ids that a request names or has seen are touched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.types import Sampling
from .tally import Seen


def adjust(logits: Tensor, samplings: Sequence[Sampling], seen: Sequence[Seen | None]) -> Tensor:
    """Logits [R, V] after bias, then penalties: repetition over prompt and answer, presence and frequency over the
    answer. A copy, or `logits` itself where no row has any; `seen` may be None where a row has no penalties.
    """
    biased = [(i, s.logit_bias) for i, s in enumerate(samplings) if s.logit_bias]
    penalized = [(i, s, before) for i, (s, before) in enumerate(zip(samplings, seen, strict=True)) if s.penalized]
    if not biased and not penalized:
        return logits
    logits = logits.clone()
    if biased:
        _add_bias(logits, biased)
    if penalized:
        _penalize(logits, penalized)
    return logits


def _add_bias(logits: Tensor, biased: Sequence[tuple[int, Sequence[tuple[int, float]]]]) -> None:
    pairs = np.array([pair for _, bias in biased for pair in bias])
    where = _places([i for i, _ in biased], [len(bias) for _, bias in biased], pairs[:, 0].astype(np.int64), logits)
    logits[where] += _like(pairs[:, 1], logits)


def _penalize(logits: Tensor, penalized: Sequence[tuple[int, Sampling, Seen | None]]) -> None:
    befores = [before for _, _, before in penalized if before is not None]
    assert len(befores) == len(penalized), "a penalty needs what came before"
    lengths = [len(before.ids) for before in befores]
    where = _places([i for i, _, _ in penalized], lengths, np.concatenate([b.ids for b in befores]), logits)
    times = _like(np.concatenate([b.times for b in befores]), logits)
    parameters = [(s.repetition_penalty, s.presence_penalty, s.frequency_penalty) for _, s, _ in penalized]
    repetition, presence, frequency = _like(np.repeat(np.array(parameters), lengths, axis=0).T.copy(), logits)
    values = logits[where]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[where] = values - (presence * (times > 0) + frequency * times)


def _places(rows: Sequence[int], lengths: Sequence[int], ids: np.ndarray, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row and id of each value; no pair comes twice."""
    repeated = np.repeat(np.asarray(rows, np.int64), lengths)
    return torch.from_numpy(repeated).to(like.device), torch.from_numpy(ids).to(like.device)


def _like(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype)

"""From logits to the model's own choices, for all wanted rows of a step at once.

Filters apply in the order penalties → temperature → top_k → top_p → min_p, each to what the one before left. Whatever
ties with the last that a filter keeps is kept too, so the allowed set depends on values alone. Among the allowed ids
the coupled noise decides (`kernels/noise.py`); temperature 0 takes the largest logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.types import Sampling
from ..kernels.noise import gumbel
from .request import Choice


@dataclass(frozen=True, slots=True)
class Row:
    """How one row of logits becomes a choice."""

    sampling: Sampling
    index: int
    """Answer index of the id that is chosen here."""
    seen: Sequence[int] = ()
    """Prompt and answer before it, drafts included; needed by penalties only."""
    prompt_length: int = 0
    """How many of `seen` are the prompt's."""
    given: int | None = None
    """The id that follows, where its log-probability is wanted."""
    logprob: bool = False
    """Whether that of the choice is wanted."""


@torch.inference_mode()
def choose(logits: Tensor, rows: Sequence[Row]) -> list[Choice]:
    """One choice per row of `logits`, float32 [rows, vocabulary]."""
    finite = torch.isfinite(logits.sum(dim=-1)).tolist()
    tokens = _tokens(logits, rows)
    if not any(row.logprob or row.given is not None for row in rows):
        return [Choice(token, finite=good) for token, good in zip(tokens.tolist(), finite, strict=True)]
    logprobs = logits - logits.logsumexp(dim=-1, keepdim=True)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    given_ids = torch.tensor([row.given or 0 for row in rows], device=logits.device)
    given = logprobs.gather(1, given_ids[:, None])[:, 0].tolist()
    return [
        Choice(token, chosen[i], given[i] if rows[i].given is not None else float("nan"), finite[i])
        for i, token in enumerate(tokens.tolist())
    ]


def _tokens(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """int64 [rows]."""
    penalized = [i for i, row in enumerate(rows) if row.sampling.penalized]
    if penalized:
        logits = logits.clone()
        logits[penalized] = penalize(logits[penalized], [rows[i] for i in penalized])
    tokens = logits.argmax(dim=-1)
    drawn = [i for i, row in enumerate(rows) if not row.sampling.greedy]
    if drawn:
        tokens[drawn] = _draw(logits[drawn] if len(drawn) < len(rows) else logits, [rows[i] for i in drawn])
    return tokens


def penalize(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Logits [R, V] after the penalties: repetition over prompt and answer, presence and frequency over the answer."""
    counts = torch.zeros((2, *logits.shape), device=logits.device)
    for kind, start in enumerate((0, None)):
        pairs = [(i, t) for i, row in enumerate(rows) for t in row.seen[row.prompt_length if start is None else 0 :]]
        if pairs:
            where = torch.tensor(pairs, device=logits.device)
            counts[kind].index_put_((where[:, 0], where[:, 1]), torch.ones((), device=logits.device), accumulate=True)
    in_all, in_answer = counts
    repetition = _column(rows, "repetition_penalty", logits)
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(in_all > 0, repeated, logits)
    presence, frequency = _column(rows, "presence_penalty", logits), _column(rows, "frequency_penalty", logits)
    penalty: Tensor = presence * (in_answer > 0) + frequency * in_answer
    return logits - penalty


def _draw(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Exact draws from the filtered distributions, by the Gumbel-max trick with the shared noise."""
    scaled = allowed(logits / _column(rows, "temperature", logits), [row.sampling for row in rows])
    seeds = torch.tensor([_signed(row.sampling.seed or 0) for row in rows], device=logits.device)
    indices = torch.tensor([row.index for row in rows], device=logits.device)
    return gumbel(seeds, indices, logits.shape[-1]).add_(scaled).argmax(dim=-1)


def allowed(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """`scaled` logits [R, V] with −inf where top_k, top_p or min_p forbid an id.

    Each filter keeps what reaches a value, so all three are one threshold per row.
    """
    active = [i for i, s in enumerate(samplings) if s.top_k or s.top_p < 1 or s.min_p > 0]
    if not active:
        return scaled
    part, chosen = scaled[active], [samplings[i] for i in active]
    threshold = part.amax(dim=-1, keepdim=True) + _values([s.min_p for s in chosen], part).log()
    if any(s.top_k or s.top_p < 1 for s in chosen):
        threshold = torch.maximum(threshold, _nucleus(part, chosen))
    scaled = scaled.clone()
    scaled[active] = part.masked_fill(part < threshold, -torch.inf)
    return scaled


def _nucleus(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The least value [R, 1] that top_k, then top_p of what it left, keep."""
    size = scaled.shape[-1]
    ordered = scaled.sort(dim=-1, descending=True).values
    kth = torch.tensor([[min(s.top_k or size, size) - 1] for s in samplings], device=scaled.device)
    least = ordered.gather(1, kth)
    probabilities = ordered.masked_fill(ordered < least, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = (before < _values([s.top_p if s.top_p < 1 else 2.0 for s in samplings], scaled)).sum(dim=-1, keepdim=True)
    return torch.maximum(least, ordered.gather(1, kept.clamp(min=1) - 1))


def _column(rows: Sequence[Row], name: str, like: Tensor) -> Tensor:
    """One parameter of each row, [R, 1]."""
    return _values([getattr(row.sampling, name) for row in rows], like)


def _values(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _signed(seed: int) -> int:
    """The 64 bits of an unsigned seed as the signed integer that torch can hold."""
    return seed - (1 << 64) if seed >> 63 else seed

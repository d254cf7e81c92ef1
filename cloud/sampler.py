"""From logits to the model's own choices, for all wanted rows of a step at once.

Bias and penalties come first (`adjust.py`), then temperature and the filters (`filters.py`), each on what the one
before left. Among the allowed ids the coupled noise decides (`kernels/noise.py`); temperature 0 takes the largest
logit. A row's choice depends on no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.types import Sampling, TopLogprobs
from ..kernels.noise import gumbel, gumbel_at
from .adjust import adjust
from .filters import HEADS, allowed, allowed_head, is_filtered
from .request import Choice
from .tally import Seen


@dataclass(frozen=True, slots=True)
class Row:
    """How one row of logits becomes a choice."""

    sampling: Sampling
    index: int
    """Answer index of the id that is chosen here."""
    seen: Seen | None = None
    """Prompt and answer before it, drafts included; needed by penalties only."""
    given: int | None = None
    """The id that follows, where its log-probability is wanted."""
    logprob: bool = False
    """Whether that of the choice is wanted."""
    top: int = 0
    """How many of the most probable ids are wanted."""


@torch.inference_mode()
def choose(logits: Tensor, rows: Sequence[Row]) -> list[Choice]:
    """One choice per row of `logits`, float32 [rows, vocabulary]."""
    finite = torch.isfinite(logits.sum(dim=-1)).tolist()
    adjusted = adjust(logits, [row.sampling for row in rows], [row.seen for row in rows])
    tokens = _tokens(adjusted, rows)
    if not any(row.logprob or row.given is not None or row.top for row in rows):
        return [Choice(token, finite=good) for token, good in zip(tokens.tolist(), finite, strict=True)]
    mass = logits.logsumexp(dim=-1, keepdim=True)
    chosen = (logits.gather(1, tokens[:, None]) - mass)[:, 0].tolist()
    given_ids = torch.tensor([row.given or 0 for row in rows], device=logits.device)
    given = (logits.gather(1, given_ids[:, None]) - mass)[:, 0].tolist()
    top = _most_probable(logits, mass, [row.top for row in rows])
    return [
        Choice(token, chosen[i], given[i] if rows[i].given is not None else float("nan"), top[i], finite[i])
        for i, token in enumerate(tokens.tolist())
    ]


def _tokens(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """int64 [rows], of adjusted logits."""
    plain = [i for i, row in enumerate(rows) if not row.sampling.greedy and not is_filtered(row.sampling)]
    filtered = [i for i, row in enumerate(rows) if not row.sampling.greedy and is_filtered(row.sampling)]
    if len(plain) == len(rows):
        return _draw(logits, rows)
    tokens = logits.argmax(dim=-1)
    if plain:
        tokens[plain] = _draw(logits[plain], [rows[i] for i in plain])
    if filtered:
        tokens[filtered] = _draw_filtered(logits[filtered], [rows[i] for i in filtered])
    return tokens


def _draw(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Exact draws from the softmax of `logits` over T, by the Gumbel-max trick with the shared noise; int64 [R]."""
    return _noise(rows, logits).add_(_scaled(logits, rows)).argmax(dim=-1)


def _draw_filtered(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The same from what the filters leave: noise is drawn for the ids that may win alone, if those are few."""
    scaled = _scaled(logits, rows)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    rest = list(range(len(rows)))
    for size in HEADS:
        part, some = scaled[rest], [rows[i] for i in rest]
        values, ids, whole = allowed_head(part, [row.sampling for row in some], size)
        scores = values + gumbel_at(*_seeds(some, logits), ids)
        # Of equal scores the smallest id wins, as over the whole vocabulary: the largest come in no order of ids.
        best = scores == scores.amax(dim=-1, keepdim=True)
        tokens[rest] = ids.masked_fill(~best, logits.shape[-1]).amin(dim=-1)
        rest = [i for i, known in zip(rest, whole.tolist(), strict=True) if not known]
        if not rest:
            return tokens
    some = [rows[i] for i in rest]
    tokens[rest] = _noise(some, logits).add_(allowed(scaled[rest], [row.sampling for row in some])).argmax(dim=-1)
    return tokens


def _most_probable(logits: Tensor, mass: Tensor, counts: Sequence[int]) -> list[TopLogprobs]:
    """The `counts[i]` most probable ids of each row, most probable first."""
    wanted = [i for i, count in enumerate(counts) if count]
    found: list[TopLogprobs] = [()] * len(counts)
    if wanted:
        values, ids = (logits[wanted] - mass[wanted]).topk(min(max(counts), logits.shape[-1]), dim=-1)
        for i, row_ids, row_values in zip(wanted, ids.tolist(), values.tolist(), strict=True):
            found[i] = tuple(zip(row_ids, row_values, strict=True))[: counts[i]]
    return found


def _scaled(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    temperatures = [row.sampling.temperature for row in rows]
    return logits / torch.tensor(temperatures, dtype=logits.dtype, device=logits.device)[:, None]


def _noise(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """float32 [R, V]."""
    return gumbel(*_seeds(rows, logits), logits.shape[-1])


def _seeds(rows: Sequence[Row], like: Tensor) -> tuple[Tensor, Tensor]:
    """Seeds, as the signed integers with their 64 bits, and answer indices; int64 [R] each."""
    seeds = [_signed(row.sampling.seed or 0) for row in rows]
    return torch.tensor(seeds, device=like.device), torch.tensor([row.index for row in rows], device=like.device)


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >> 63 else seed

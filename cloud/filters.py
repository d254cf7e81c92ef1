"""Which ids top_k, top_p and min_p leave: each filter keeps what reaches a value, so all three are one threshold.

Whatever ties with the last that a filter keeps is kept too, so the allowed set depends on values alone. A sort of the
vocabulary is what a filter need not cost: 84 ms a row at 152 k ids, 1.7 ms for the 256 largest; at 4 k ids 0.27 and
0.04 ms. So the largest are looked at first, and only rows whose threshold lies behind all of `HEADS` are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.types import Sampling

HEADS = 256, 2048
"""How many of the largest are looked at. In the starter's code at T = 0.7 and top_p 0.9 the first do in 99 % of places,
at T = 1 and top_p 0.95 in 25 %, and the second in 99 %."""


def is_filtered(sampling: Sampling) -> bool:
    """Whether any filter is on."""
    return bool(sampling.top_k) or sampling.top_p < 1 or sampling.min_p > 0


def allowed(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """`scaled` logits [R, V] with −inf where the filters forbid an id; by a sort of each row."""
    ordered = scaled.sort(dim=-1, descending=True).values
    return scaled.masked_fill(scaled < threshold(ordered, ordered, samplings), -torch.inf)


def allowed_head(scaled: Tensor, samplings: Sequence[Sampling], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The allowed ids of each row among its `size` largest.

    Values, −inf where forbidden, and ids, both [R, size] or [R, V] if that is less; and whether that is all that is
    allowed, bool [R].
    """
    ordered, ids = scaled.topk(min(size, scaled.shape[-1]), dim=-1)
    least = threshold(ordered, scaled, samplings)
    last = ordered[:, -1:]
    kth = ordered.gather(1, _kth(samplings, ordered))
    # Equal to the last: what ties with it may lie behind, and the mass that top_p shares out is then not known either.
    whole = (least > last) & ((kth > last) | ~_values([bool(s.top_k) for s in samplings], ordered, torch.bool))
    if ordered.shape[-1] == scaled.shape[-1]:
        whole = torch.ones_like(whole)
    return ordered.masked_fill(ordered < least, -torch.inf), ids, whole[:, 0]


def threshold(ordered: Tensor, scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The least value [R, 1] that all filters keep; `ordered` are the largest of `scaled`, descending."""
    least = ordered[:, :1] + _values([s.min_p for s in samplings], ordered).log()
    if any(s.top_k or s.top_p < 1 for s in samplings):
        least = torch.maximum(least, _nucleus(ordered, scaled, samplings))
    return least


def _nucleus(ordered: Tensor, scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The least value [R, 1] that top_k, then top_p of what it left, keep."""
    unlimited = _values([not s.top_k for s in samplings], ordered, torch.bool)
    least = ordered.gather(1, _kth(samplings, ordered)).masked_fill(unlimited, -torch.inf)
    if all(s.top_p == 1 for s in samplings):
        return least
    kept = ordered.masked_fill(ordered < least, -torch.inf)
    mass = torch.where(unlimited, scaled.logsumexp(-1, keepdim=True), kept.logsumexp(-1, keepdim=True))
    probabilities = (kept - mass).to(torch.float64).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    shares = _values([s.top_p if s.top_p < 1 else 2.0 for s in samplings], ordered, torch.float64)
    count = (before < shares).sum(dim=-1, keepdim=True)
    return torch.maximum(least, ordered.gather(1, count.clamp(min=1) - 1))


def _kth(samplings: Sequence[Sampling], ordered: Tensor) -> Tensor:
    """Where the k-th largest stands, or the last that is known; int64 [R, 1]."""
    size = ordered.shape[-1]
    return _values([min(s.top_k or size, size) - 1 for s in samplings], ordered, torch.int64)


def _values(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.tensor(values, dtype=dtype or like.dtype, device=like.device)[:, None]

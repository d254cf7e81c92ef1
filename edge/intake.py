"""Where an answer begins: on the edge model, or whole in the cloud. Pure."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from ..common.errors import DeadlineExceeded
from ..common.types import ModelInfo, Quality, Request
from ..common.validate import Limits
from .artifact import Architecture
from .tenants import Grant


@dataclass(frozen=True, slots=True)
class Situation:
    """What a node knows when a request comes."""

    architecture: Architecture
    pool: ModelInfo | None
    """The model above that is meant; None while none was ever heard of."""
    connected: bool
    same_ids: bool
    """Whether token ids mean the same on both sides."""
    wait_s: float
    """How long the edge model's queue would take."""


def speaks_foreign(situation: Situation, quality: Quality) -> bool:
    """Whether the answer can only come from above, as text: the pool has another tokenizer or chat template."""
    return situation.pool is not None and not situation.same_ids and quality is not Quality.EDGE


def limits(situation: Situation, quality: Quality) -> Limits:
    """What a request may ask for: what the edge model can hold, or what the cloud can, if it may go there."""
    shapes, pool = situation.architecture, situation.pool
    if pool is None or quality is Quality.EDGE:
        return Limits(shapes.max_length, shapes.vocab)
    if speaks_foreign(situation, quality):
        return Limits(pool.max_context, pool.vocab_size)
    return Limits(max(pool.max_context, shapes.max_length), min(pool.vocab_size, shapes.vocab))


def goes_up_whole(situation: Situation, grant: Grant, tokens: int) -> bool:
    """Whether the cloud gives the whole answer; `tokens` is prompt and answer together.

    So it does when the edge model could not hold it, or when its queue would take longer than the tier's first token
    may.
    """
    if grant.quality is Quality.EDGE:
        return False
    if speaks_foreign(situation, grant.quality) or tokens > situation.architecture.max_length:
        return True
    return situation.connected and situation.wait_s > grant.tier.ttft_s


def fill(request: Request, grant: Grant) -> Request:
    """The request as it travels on: every choice that is left to the first hop is made."""
    if grant.deadline_s <= 0:
        raise DeadlineExceeded("the deadline had passed when the request came; allow more time")
    sampling = request.sampling
    if sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbits(64))
    return replace(
        request,
        sampling=sampling,
        tier=grant.tier.name,
        quality=grant.quality,
        delta=grant.delta,
        deadline_s=grant.deadline_s,
        request_id=request.request_id or secrets.token_hex(16),
    )

"""What the schedule is about: jobs, the rules of tiers and tenants, and decisions."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.errors import TiermeshError

LARGEST_COST = 4096.0
"""Cost of one request in the schedule at most, in tokens: what a tier may have to wait for beyond its share."""


@dataclass(frozen=True, slots=True)
class TierRule:
    """A tier, highest first in the scheduler's list."""

    name: str
    ttft_s: float
    min_share: float
    """Share of the dispatched cost that is its own whenever it waits."""


@dataclass(frozen=True, slots=True)
class TenantRule:
    """What the scheduler must know of a tenant."""

    weight: float
    concurrent: int
    queued: int


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work that needs a slot."""

    number: int
    """Unique, and growing with time."""
    tenant: str
    tier: str
    cost: float
    """Expected, in tokens; above what the scheduler was told as the largest cost it counts as that."""
    deadline: float
    """Monotonic seconds."""
    service_s: float = 0.0
    """Expected time from dispatch to the last token."""
    first_s: float = 0.0
    """Expected time from dispatch to the first token."""
    identity: int = 0
    """The same when the same request comes again; 0 where that can't be told, and no place is kept for it then."""
    attained: float = 0.0
    """Cost of what earlier turns of the same conversation or session were given, in tokens."""
    slow_s: float = 0.0
    """What it hardly ever takes longer than, from dispatch to the last token; 0 where nothing tells."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The job has a slot now."""

    job: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The job will not run."""

    job: int
    error: TiermeshError


Decision = Dispatch | Refusal

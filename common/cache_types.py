"""What operators ask and learn about the result cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Scope:
    """What a purge is about."""

    kind: Literal["tenant", "model", "all"]
    name: str = ""
    """The tenant, or the model: where operators ask, its id or digest; in a store, its digest."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What somebody has in a store."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a router's cache holds, and how it fares."""

    store: str
    """memory or redis."""
    breaker: str
    """closed, open or half_open."""
    tenants: Mapping[str, Holdings]
    counts: Mapping[str, Mapping[str, int]]
    """Look-ups, evictions, leases and calls, each by outcome, since the router started."""

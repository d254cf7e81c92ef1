"""What operators see of a running router. Never a key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """The configuration in force."""

    source: str = ""
    """The YAML; empty where the router runs without."""
    since: float = 0.0
    """When it came into force; seconds since 1970."""
    taken: int = 0
    """Newer ones that came into force since the start."""
    kept: int = 0
    """Newer ones that did not, so that the one before stayed."""
    fault: str = ""
    """What keeps the file as it is now out of force, with the path in it; empty when it is in."""


@dataclass(frozen=True, slots=True)
class TierStatus:
    """A tier."""

    name: str
    waiting: int
    running: int
    lag: float
    """Service that it is owed, in tokens."""
    lag_bound: float
    """What no lag reaches, in tokens."""
    offered: int
    """Requests that ended, answered or refused, since the start."""
    attained: int
    """Of these: the first token came within the tier's budget."""
    ttft_s: float
    """That budget, in seconds."""


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """How much of a tenant's limit is used."""

    name: str
    """As in the configuration."""
    used: float
    limit: float


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """A tenant at this router."""

    name: str
    running: int
    waiting: int
    limits: tuple[LimitStatus, ...]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker as this router sees it."""

    address: str
    state: str
    """up, away, foreign, draining, ejected, silent, trial or leaving."""
    in_flight: int
    """Requests of this router there."""
    limit: int
    """How many it gives at most."""
    slots: int
    """This and what follows as the last load frame says."""
    running: int
    waiting: int
    kv_free: float
    """0 to 1."""
    ejections: int
    """Times that it was set aside."""
    ejected_for_s: float
    """For how long it still is, in seconds."""

    @property
    def there(self) -> bool:
        """Whether the router could give it requests: to one that is set aside or silent where there is no other."""
        return self.state in ("up", "trial", "ejected", "silent")


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """One router, now."""

    config: ConfigStatus
    tiers: tuple[TierStatus, ...]
    tenants: tuple[TenantStatus, ...]
    workers: tuple[WorkerStatus, ...]
    limits: str
    """Who keeps the limits: memory, redis, or redis_away while this router keeps them alone."""
    retries: int
    """Attempts beyond the first in the retry budget's window."""
    retries_allowed: int
    """How many there may be now."""

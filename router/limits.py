"""Requests and tokens per minute, tokens per day: reserved before the work, settled after it.

Each limit is a bucket that refills evenly: what was used fades at the rate of the limit, and a request may bring it up
to the limit and no further. So over any time, no more is used than the limit's worth of that time, and the limit once
beyond that. How many run at once is the schedule's to keep, see `TenantRule`.

These buckets are of this process and hold for it whatever happens. Where routers share limits, `shared` adds what the
others use; see `shared_limits.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..common.clock import Clock
from ..common.config_types import TenantConfig, TenantLimits
from ..common.errors import QuotaExceeded, Violation

Amounts = tuple[float, ...]
"""How much of each rule, in the order of `RULES`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of limit."""

    name: str
    """As in the configuration."""
    window_s: float


RULES = (Rule("requests_per_minute", 60.0), Rule("tokens_per_minute", 60.0), Rule("tokens_per_day", 86_400.0))


def amounts(requests: float, tokens: float) -> Amounts:
    """What so many requests and tokens take of each rule."""
    return requests, tokens, tokens


def most(limits: TenantLimits) -> tuple[float | None, ...]:
    """The limit of each rule; None where there is none."""
    return limits.requests_per_minute, limits.tokens_per_minute, limits.tokens_per_day


class Bucket:
    """What was used of one limit and has not faded yet."""

    __slots__ = ("_at", "_used", "_window_s")

    def __init__(self, window_s: float, now: float) -> None:
        self._window_s = window_s
        self._used = 0.0
        self._at = now

    def used(self, limit: float, now: float) -> float:
        """More than the limit is debt."""
        return max(0.0, self._used - max(0.0, now - self._at) * limit / self._window_s)

    def wait_s(self, amount: float, limit: float, now: float) -> float:
        """Seconds until so much is left; 0 when it is. More than the limit counts as that."""
        missing = self.used(limit, now) + min(amount, limit) - limit
        return max(0.0, missing * self._window_s / limit)

    def take(self, amount: float, limit: float, now: float) -> None:
        """Takes it, into debt if need be; a negative amount gives back."""
        self._used = max(0.0, self.used(limit, now) + amount)
        self._at = now


@dataclass(slots=True)
class Reservation:
    """Taken in advance."""

    tenant: TenantConfig
    tokens: float
    shared: bool = False
    """Whether the other routers know of it."""


class Shared(Protocol):
    """Limits that several routers keep together."""

    async def reserve(self, reservation: Reservation) -> None:
        """Takes one request and its tokens, and marks it, unless no answer comes in time. Raises QuotaExceeded."""
        ...

    async def look(self, tenant: TenantConfig, tokens: float) -> None:
        """Raises what `reserve` would; takes nothing."""
        ...

    def check(self, tenant: TenantConfig) -> None:
        """Raises QuotaExceeded when nothing was left by the last answer."""
        ...

    def charge(self, tenant: TenantConfig, taken: Amounts) -> None:
        """Counts what was used, soon; negative amounts give back."""
        ...


class Limits:
    """The buckets of all tenants. `reserve`, `settle` and `charge` come in any order; none of them waits."""

    def __init__(self, clock: Clock, shared: Shared | None = None) -> None:
        self._clock = clock
        self._shared = shared
        self._tenants: dict[str, tuple[Bucket, ...]] = {}

    async def hold(self, tenant: TenantConfig, tokens: float) -> Reservation:
        """`reserve`, and the same with the other routers, where there are any."""
        reservation = self.reserve(tenant, tokens)
        if self._shared is not None:
            try:
                await self._shared.reserve(reservation)
            except BaseException:
                self._take(tenant, amounts(-1, -tokens))
                raise
        return reservation

    def reserve(self, tenant: TenantConfig, tokens: float) -> Reservation:
        """Takes one request and so many tokens. Raises QuotaExceeded with what is used up and for how long."""
        wanted = amounts(1, tokens)
        self._refuse(tenant, wanted)
        self._take(tenant, wanted)
        return Reservation(tenant, tokens)

    def settle(self, reservation: Reservation, tokens: float) -> None:
        """The work is done, or was not: corrects what was taken to what was used."""
        self._take(reservation.tenant, amounts(0, tokens - reservation.tokens))
        if self._shared is not None:
            known = amounts(1, reservation.tokens) if reservation.shared else amounts(0, 0)
            used = amounts(1, tokens)
            self._shared.charge(reservation.tenant, tuple(u - k for u, k in zip(used, known, strict=True)))

    def check(self, tenant: TenantConfig) -> None:
        """Raises QuotaExceeded when nothing is left; takes nothing. For work that is reported later."""
        self._refuse(tenant, amounts(1, 1))
        if self._shared is not None:
            self._shared.check(tenant)

    async def look(self, tenant: TenantConfig, tokens: float) -> None:
        """Raises what `hold` would; takes nothing."""
        self._refuse(tenant, amounts(1, tokens))
        if self._shared is not None:
            await self._shared.look(tenant, tokens)

    def charge(self, tenant: TenantConfig, tokens: float) -> None:
        """A request that an edge node answered and reported."""
        self._take(tenant, amounts(1, tokens))
        if self._shared is not None:
            self._shared.charge(tenant, amounts(1, tokens))

    def used(self, tenant: TenantConfig) -> dict[str, float]:
        """How much of each limit is used, by this router."""
        now = self._clock.now()
        limits = most(tenant.limits)
        return {
            rule.name: bucket.used(limit, now)
            for rule, bucket, limit in zip(RULES, self._buckets(tenant), limits, strict=True)
            if limit is not None
        }

    def _refuse(self, tenant: TenantConfig, wanted: Amounts) -> None:
        now = self._clock.now()
        waits_s = [
            0.0 if limit is None else bucket.wait_s(amount, limit, now)
            for bucket, limit, amount in zip(self._buckets(tenant), most(tenant.limits), wanted, strict=True)
        ]
        if any(waits_s):
            raise exceeded(tenant.limits, waits_s)

    def _take(self, tenant: TenantConfig, taken: Amounts) -> None:
        now = self._clock.now()
        for bucket, limit, amount in zip(self._buckets(tenant), most(tenant.limits), taken, strict=True):
            if limit is not None:
                bucket.take(amount, limit, now)

    def _buckets(self, tenant: TenantConfig) -> tuple[Bucket, ...]:
        buckets = self._tenants.get(tenant.name)
        if buckets is None:
            now = self._clock.now()
            buckets = self._tenants[tenant.name] = tuple(Bucket(rule.window_s, now) for rule in RULES)
        return buckets


def exceeded(limits: TenantLimits, waits_s: Sequence[float]) -> QuotaExceeded:
    """The refusal for limits that have so much to wait for, by rule."""
    short = {
        rule.name: (limit, wait_s)
        for rule, limit, wait_s in zip(RULES, most(limits), waits_s, strict=True)
        if wait_s and limit
    }
    retry_s = max(wait_s for _, wait_s in short.values())
    names = ", ".join(f"{name} ({limit:.0f})" for name, (limit, _) in short.items())
    return QuotaExceeded(
        f"the tenant's limit is used up: {names}; try again in {retry_s:.1f} s",
        violations=[Violation(name, f"the limit is {limit:.0f}") for name, (limit, _) in short.items()],
        retry_after_s=retry_s,
    )

"""Requests and tokens per minute: reserved before the work, settled after it. Pure; the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.clock import Clock
from ..common.config_types import TenantConfig
from ..common.errors import QuotaExceeded, Violation

_MINUTE_S = 60.0


class Bucket:
    """Tokens that refill evenly; a full bucket is one minute's worth, so a burst may use a minute's at once."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until this much is there; 0 when it is. More than a minute's worth counts as that."""
        self._refill(now)
        missing = min(amount, self.per_minute) - self._level
        return max(0.0, missing * _MINUTE_S / self.per_minute)

    def used(self, now: float) -> float:
        """How much of a minute's worth is gone; more than that is debt."""
        self._refill(now)
        return self.per_minute - self._level

    def take(self, amount: float, now: float) -> None:
        """Takes it, into debt if need be; a negative amount gives back."""
        self._refill(now)
        self._level = min(self._level - amount, float(self.per_minute))

    def _refill(self, now: float) -> None:
        self._level = min(self._level + (now - self._at) * self.per_minute / _MINUTE_S, float(self.per_minute))
        self._at = now


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens taken in advance."""

    tenant: str
    tokens: float


class Limits:
    """The buckets of all tenants, in this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}

    def reserve(self, tenant: TenantConfig, tokens: float) -> Reservation:
        """Takes one request and so many tokens. Raises QuotaExceeded with what is used up and for how long."""
        now = self._clock.now()
        requests, budget = self._buckets(tenant, now)
        wait_s = {"requests_per_minute": requests.wait_s(1, now), "tokens_per_minute": budget.wait_s(tokens, now)}
        short = {name: seconds for name, seconds in wait_s.items() if seconds > 0}
        if short:
            raise _exceeded(tenant, short)
        requests.take(1, now)
        budget.take(tokens, now)
        return Reservation(tenant.name, tokens)

    def settle(self, reservation: Reservation, tokens: float) -> None:
        """The work is done, or was not: corrects what was taken to what was used."""
        if bucket := self._tokens.get(reservation.tenant):
            bucket.take(tokens - reservation.tokens, self._clock.now())

    def check(self, tenant: TenantConfig, tokens: float = 1) -> None:
        """Raises QuotaExceeded when so much is not left; takes nothing. For work that is reported later."""
        now = self._clock.now()
        requests, budget = self._buckets(tenant, now)
        wait_s = {"requests_per_minute": requests.wait_s(1, now), "tokens_per_minute": budget.wait_s(tokens, now)}
        short = {name: seconds for name, seconds in wait_s.items() if seconds > 0}
        if short:
            raise _exceeded(tenant, short)

    def charge(self, tenant: TenantConfig, tokens: float) -> None:
        """A request that an edge node answered and reported."""
        now = self._clock.now()
        requests, budget = self._buckets(tenant, now)
        requests.take(1, now)
        budget.take(tokens, now)

    def used(self, tenant: TenantConfig) -> dict[str, float]:
        """How much of each limit is used."""
        now = self._clock.now()
        requests, budget = self._buckets(tenant, now)
        return {"requests_per_minute": requests.used(now), "tokens_per_minute": budget.used(now)}

    def _buckets(self, tenant: TenantConfig, now: float) -> tuple[Bucket, Bucket]:
        pair = []
        for buckets, rate in (
            (self._requests, tenant.limits.requests_per_minute),
            (self._tokens, tenant.limits.tokens_per_minute),
        ):
            bucket = buckets.get(tenant.name)
            if bucket is None or bucket.per_minute != rate:
                bucket = buckets[tenant.name] = Bucket(rate, now)
            pair.append(bucket)
        return pair[0], pair[1]


def _exceeded(tenant: TenantConfig, short: dict[str, float]) -> QuotaExceeded:
    limits = {
        "requests_per_minute": tenant.limits.requests_per_minute,
        "tokens_per_minute": tenant.limits.tokens_per_minute,
    }
    names = ", ".join(f"{name} ({limits[name]})" for name in short)
    return QuotaExceeded(
        f"the tenant's limit is used up: {names}; try again in {max(short.values()):.1f} s",
        violations=[Violation(name, f"the limit is {limits[name]}") for name in short],
        retry_after_s=max(short.values()),
    )

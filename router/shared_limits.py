"""Limits that several routers keep together, on the Redis of their cache.

Each router's own buckets (`limits.py`) hold before these are asked, so what is over the limit at one router costs no
call, and without Redis every router goes on with its own. A call has the budget of the cache's calls; one that is late
counts as not made, and what it took after all is given back or taken over when its reply comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..cache.port import Observer
from ..cache.redis_line import Line
from ..cache.seal import Seal
from ..common.clock import Clock
from ..common.config_types import CacheConfig, TenantConfig
from ..common.secret import Secret
from ..common.telemetry import get_logger
from .limit_scripts import ALL, TAKE
from .limits import RULES, Amounts, Reservation, amounts, exceeded, most
from .permits import Permits

_log = get_logger()

_CONNECT_S = 1.0


class SharedLimits:
    """See `Shared`. All methods belong to the event loop's thread."""

    def __init__(
        self,
        config: CacheConfig,
        secret: Secret,
        clock: Clock,
        me: str,
        concurrent: Callable[[str], int],
        observer: Observer | None = None,
    ) -> None:
        self._client = Redis.from_url(
            config.url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=_CONNECT_S, protocol=2
        )
        self.line = Line(self._client, config.budget_s, clock, observer or Observer(), scripts=ALL, name="limits")
        self._clock = clock
        self._seal = Seal(secret)
        self.permits = Permits(
            self.line, me, lambda tenant: f"tml:{self._seal.tenant(tenant)}:p", concurrent, lease_s=config.lease_s
        )
        self._owed: dict[str, tuple[TenantConfig, Amounts]] = {}
        self._owes = asyncio.Event()
        self._shut: dict[str, tuple[float, list[float]]] = {}
        """By tenant, until when nothing is left as the last answer told, and the waits by rule."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def state(self) -> str:
        """redis, or redis_away while this router keeps the limits alone."""
        return "redis" if self.line.up else "redis_away"

    def start(self) -> None:
        """Connects."""
        works: list[Coroutine[Any, Any, None]] = [self.line.run(), self.permits.run(), self._settle()]
        self._tasks = [asyncio.create_task(_logged(work)) for work in works]

    async def close(self) -> None:
        """Hangs up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def reserve(self, reservation: Reservation) -> None:
        """See `Shared`."""
        tenant, taken = reservation.tenant, amounts(1, reservation.tokens)

        def late(reply: list[int]) -> None:
            if reply[0]:
                self.charge(tenant, tuple(-amount for amount in taken))

        reply = await self._take("reserve", tenant, taken, late)
        if reply is not None:
            reservation.shared = True
            self._told(tenant, reply)

    async def look(self, tenant: TenantConfig, tokens: float) -> None:
        """See `Shared`."""
        reply = await self._take("look", tenant, amounts(1, tokens))
        if reply is not None and any(waits := _waits_s(tenant, reply)):
            raise exceeded(tenant.limits, waits)

    def check(self, tenant: TenantConfig) -> None:
        """See `Shared`."""
        until, waits_s = self._shut.get(tenant.name, (0.0, []))
        if (left_s := until - self._clock.now()) > 0 and self.line.up:
            raise exceeded(tenant.limits, [min(wait_s, left_s) for wait_s in waits_s])

    def charge(self, tenant: TenantConfig, taken: Amounts) -> None:
        """See `Shared`. Charges of one turn of the event loop go out as one."""
        _, before = self._owed.get(tenant.name, (tenant, amounts(0, 0)))
        self._owed[tenant.name] = tenant, tuple(a + b for a, b in zip(before, taken, strict=True))
        self._owes.set()

    async def used(self, tenant: TenantConfig) -> dict[str, float] | None:
        """How much of each limit all routers have used; None without an answer."""
        reply = await self._take("look", tenant, amounts(0, 0))
        rules = _rules(tenant)
        return None if reply is None else {RULES[rule].name: reply[1 + len(rules) + 2 * at] for at, rule in rules}

    async def _settle(self) -> None:
        while True:
            await self._owes.wait()
            self._owes.clear()
            owed, self._owed = self._owed, {}
            replies = await asyncio.gather(*(self._take("charge", *one) for one in owed.values()))
            for (tenant, _), reply in zip(owed.values(), replies, strict=True):
                if reply is not None:
                    self._remember(tenant, reply)

    async def _take(
        self, how: str, tenant: TenantConfig, taken: Amounts, late: Callable[[Any], None] | None = None
    ) -> list[int] | None:
        limits = most(tenant.limits)
        words: list[Any] = [how]
        for _, rule in _rules(tenant):
            words += [RULES[rule].name, limits[rule], round(RULES[rule].window_s * 1000), taken[rule]]
        reply: list[int] | None = await self.line.call(
            TAKE, (f"tml:{self._seal.tenant(tenant.name)}:u",), words, late=late
        )
        return reply

    def _told(self, tenant: TenantConfig, reply: list[int]) -> None:
        """Raises QuotaExceeded when a reservation was refused."""
        self._remember(tenant, reply)
        if not reply[0]:
            raise exceeded(tenant.limits, _waits_s(tenant, reply))

    def _remember(self, tenant: TenantConfig, reply: list[int]) -> None:
        """For `check`: how long until one more request, or token, is left."""
        rules = _rules(tenant)
        waits_s = [0.0] * len(RULES)
        for at, rule in rules:
            waits_s[rule] = reply[2 + len(rules) + 2 * at] / 1e3
        self._shut[tenant.name] = self._clock.now() + max(waits_s), waits_s


def _rules(tenant: TenantConfig) -> list[tuple[int, int]]:
    """The tenant's own: place among them, and in `RULES`."""
    return list(enumerate(rule for rule, limit in enumerate(most(tenant.limits)) if limit is not None))


def _waits_s(tenant: TenantConfig, reply: list[int]) -> list[float]:
    """By rule, how long until what was asked for is left."""
    waits_s = [0.0] * len(RULES)
    for at, rule in _rules(tenant):
        waits_s[rule] = reply[1 + at] / 1e3
    return waits_s


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001 - the top of a task; logged
        _log.exception("defect", task="shared_limits")

"""A tenant's concurrency, shared by routers: each holds permits, and starts no more jobs of the tenant than it holds.

What a router holds is a lease in Redis: one that is gone stops counting when its lease runs out, and nobody has to
clear up after it. The schedule never waits for Redis. A job without a permit waits in its queue like one of a tenant
that is at its limit, and starts when the next answer brings one. A permit that comes free goes to the router that has
lacked one for longest, so that no router's queue starves another's.

A router never uses what it may be about to lose: while an answer is awaited it keeps to what it told Redis it keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..cache.redis_line import Line
from .limit_scripts import PERMITS

_SPARE = 2
"""Permits that are kept for the next jobs while half of the limit is free, so that those wait for no answer."""
_LACKING_S = 0.05
"""How often a router asks again for a permit that it lacks."""
_BEATS = 8
"""Times that all leases are renewed while one lasts."""

Demand = Callable[[str], tuple[int, int]]
"""A tenant's jobs here that run, and that wait."""


@dataclass(slots=True)
class _Held:
    permits: int = 0
    rivals: bool = False
    """Whether another router lacks one."""


class Permits:
    """What this router holds, by tenant. All methods belong to the event loop's thread."""

    def __init__(
        self,
        line: Line,
        me: str,
        name: Callable[[str], str],
        limit: Callable[[str], int],
        *,
        lease_s: float,
    ) -> None:
        self._line = line
        self._me = me
        self._name = name
        """Of a tenant's hash."""
        self._limit = limit
        """A tenant's limit in the configuration."""
        self._lease_s = lease_s
        self._demand: Demand = lambda _: (0, 0)
        self._reconsider: Callable[[str], None] = lambda _: None
        self._turn: Callable[[], None] = lambda: None
        self._tenants: dict[str, _Held] = {}
        self._due: set[str] = set()
        self._wake = asyncio.Event()

    def serve(self, demand: Demand, reconsider: Callable[[str], None], turn: Callable[[], None]) -> None:
        """For this schedule: `reconsider` is called when a tenant has more or fewer, `turn` when some may start."""
        self._demand, self._reconsider, self._turn = demand, reconsider, turn

    def most(self, tenant: str) -> int | None:
        """Jobs of the tenant that may run here; None while nobody tells, and the configuration's limit holds alone."""
        if not self._line.up:
            return None
        held = self._tenants.get(tenant)
        return held.permits if held is not None else 0

    def changed(self, tenant: str) -> None:
        """A job of the tenant came or went; to be called before the schedule starts others."""
        held = self._tenants.get(tenant)
        if held is None:
            held = self._tenants[tenant] = _Held()
        running, waiting = self._demand(tenant)
        given_back = held.rivals and held.permits > running
        if given_back:  # a permit that has come free is for whoever has lacked one for longest, here or elsewhere
            held.permits = running
        if given_back or (waiting and held.permits <= running):
            self._due.add(tenant)
            self._wake.set()
        self._reconsider(tenant)

    async def run(self) -> None:
        """Asks, renews and gives back, until cancelled."""
        loop = asyncio.get_running_loop()
        beat_s, last = self._lease_s / _BEATS, float("-inf")
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_LACKING_S, beat_s) if self._lacking() else beat_s):
                    await self._wake.wait()
            self._wake.clear()
            if not self._line.up:
                # What was held may be another's by the time that Redis is back.
                for tenant, held in self._tenants.items():
                    held.permits = 0
                    self._reconsider(tenant)
                self._turn()  # the configuration's limit holds alone now
                continue
            due = self._due | set(self._lacking())
            self._due = set()
            if loop.time() - last >= beat_s:
                last, due = loop.time(), set(self._tenants)
            await asyncio.gather(*(self._ask(tenant) for tenant in due))

    def _lacking(self) -> list[str]:
        lacking = []
        for tenant, held in self._tenants.items():
            running, waiting = self._demand(tenant)
            if waiting and held.permits <= running:
                lacking.append(tenant)
        return lacking

    async def _ask(self, tenant: str) -> None:
        held = self._tenants[tenant]
        running, waiting = self._demand(tenant)
        if not held.permits and not running and not waiting:
            del self._tenants[tenant]
            return
        keep = running if held.rivals else min(held.permits, running + waiting)
        held.permits = keep
        self._reconsider(tenant)
        spare, limit = _SPARE if running or waiting else 0, self._limit(tenant)
        words = (self._me, running, waiting, keep, spare, limit, round(self._lease_s * 1000))
        reply = await self._line.call(PERMITS, (self._name(tenant),), words)
        if reply is None:
            return
        granted, rivals = reply
        held.permits, held.rivals = granted, rivals > 0
        self._reconsider(tenant)
        if granted > keep:
            self._turn()

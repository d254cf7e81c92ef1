"""A tenant's concurrency over several routers, each with a real schedule, on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from tiermesh.common.clock import MonotonicClock
from tiermesh.router.jobs import Job, TenantRule, TierRule
from tiermesh.router.scheduler import Scheduler
from tiermesh.router.shared_limits import SharedLimits
from tiermesh.router.slots import Slots

pytestmark = pytest.mark.redis

LIMIT = 4
Until = Callable[..., Awaitable[None]]


@dataclass
class Floor:
    """What runs at all routers together, and the most that ever did."""

    running: int = 0
    most: int = 0
    by: dict[str, int] = field(default_factory=dict)

    def begin(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)


class Core:
    """Schedule, slots and permits of one router, wired as `core.py` does."""

    def __init__(self, name: str, shared: SharedLimits, floor: Floor, limit: int) -> None:
        self.name = name
        self.shared = shared
        self.floor = floor
        self.limit = limit
        clock = MonotonicClock()
        scheduler = Scheduler([TierRule("standard", 0.2, 0.1)], self._rule, largest_cost=4096.0)
        self.slots = Slots(scheduler, clock, shared.permits.changed)
        scheduler.slots = 100
        shared.permits.serve(scheduler.demand, scheduler.reconsider, self.slots.turn)

    def _rule(self, tenant: str) -> TenantRule:
        held = self.shared.permits.most(tenant)
        return TenantRule(1.0, self.limit if held is None else min(self.limit, held), 1000)

    async def run(self, hold: Callable[[], Awaitable[None]]) -> None:
        """One job, from its arrival to its end."""
        now = MonotonicClock().now()
        ticket = self.slots.submit(Job(self.slots.number(), "demo", "standard", 10.0, now + 60))
        try:
            await ticket.wait()
            self.floor.begin()
            try:
                await hold()
                self.floor.by[self.name] = self.floor.by.get(self.name, 0) + 1
            finally:
                self.floor.running -= 1
        finally:
            ticket.release(10.0)


@pytest.fixture
def server(start_redis: Callable[..., Any]) -> Any:
    return start_redis()


@pytest.fixture
async def open_core(open_shared: Any, server: Any) -> AsyncIterator[Callable[..., Awaitable[Core]]]:
    async with AsyncExitStack() as stack:

        async def opened(name: str, floor: Floor, limit: int = LIMIT, **settings: Any) -> Core:
            core = Core(name, await open_shared(server.url, me=name, limit=limit, **settings), floor, limit)
            stack.callback(core.slots.close)
            return core

        yield opened


async def turn() -> None:
    """A job that takes next to nothing."""
    await asyncio.sleep(0.003)


@pytest.mark.parametrize("limit", [1, 4])
async def test_two_routers_never_run_more_than_the_limit_and_both_get_on(open_core: Any, limit: int) -> None:
    floor = Floor()
    one, other = await open_core("one", floor, limit), await open_core("other", floor, limit)
    jobs = 8 * limit
    async with asyncio.timeout(20):
        await asyncio.gather(*(core.run(turn) for core in (one, other) for _ in range(jobs)))
    assert floor.most == limit
    assert floor.by == {"one": jobs, "other": jobs}


async def test_a_router_that_is_never_idle_does_not_starve_another(open_core: Any) -> None:
    floor = Floor()
    busy, other = await open_core("busy", floor, 1, lease_s=1.0), await open_core("other", floor, 1, lease_s=1.0)

    async def again() -> None:
        while True:
            await busy.run(turn)

    flood = [asyncio.create_task(again()) for _ in range(5)]
    async with asyncio.timeout(15):
        for _ in range(3):
            await other.run(turn)
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    assert floor.most == 1


async def test_what_a_router_that_is_gone_held_comes_free_with_its_lease(
    open_core: Any, eventually: Until, server: Any
) -> None:
    floor, gate = Floor(), asyncio.Event()
    dies, other = await open_core("dies", floor, lease_s=0.4), await open_core("other", floor, lease_s=0.4)
    tasks = [asyncio.create_task(dies.run(gate.wait)) for _ in range(LIMIT)]  # type: ignore[arg-type]
    await eventually(lambda: floor.running == LIMIT)
    for task in dies.shared._tasks:  # it says nothing any more, as if killed
        task.cancel()
    waiting = [asyncio.create_task(other.run(turn)) for _ in range(LIMIT)]
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    gate.set()
    await asyncio.gather(*tasks)
    await eventually(lambda: not server.client.keys("tml:*:p"))  # nothing is left behind, not even a name


async def test_without_redis_each_goes_on_with_its_own_limit_and_comes_back(
    open_core: Any, eventually: Until, server: Any
) -> None:
    floor, gate = Floor(), asyncio.Event()
    settings = {"lease_s": 0.4, "budget_s": 0.05}
    one, other = await open_core("one", floor, **settings), await open_core("other", floor, **settings)
    server.kill()
    tasks = [asyncio.create_task(core.run(gate.wait)) for core in (one, other) for _ in range(LIMIT + 1)]
    await eventually(lambda: floor.running == 2 * LIMIT)
    server.start()
    await eventually(lambda: one.shared.line.up and other.shared.line.up)
    gate.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    floor.most = 0
    async with asyncio.timeout(20):
        await asyncio.gather(*(core.run(turn) for core in (one, other) for _ in range(20)))
    assert floor.most <= LIMIT


async def test_names_in_redis_tell_no_tenant_and_all_expire(open_core: Any, server: Any, eventually: Until) -> None:
    core = await open_core("one", Floor())
    task = asyncio.create_task(core.run(asyncio.Event().wait))
    await eventually(lambda: bool(server.client.keys("tml:*:p")))
    for name in server.client.keys("*"):
        assert b"demo" not in name
        assert server.client.ttl(name) > 0 or server.client.pttl(name) > 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

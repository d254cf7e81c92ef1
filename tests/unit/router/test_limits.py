"""Requests and tokens per minute and per day: in this process, and shared on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.clock import MonotonicClock
from tiermesh.common.config import TenantConfig, default_mesh
from tiermesh.common.errors import QuotaExceeded
from tiermesh.router.limits import Limits, Reservation


@dataclass
class HandClock:
    time: float = 0.0

    def now(self) -> float:
        return self.time


def tenant(requests: int, tokens: int, day: int | None = None, name: str = "demo") -> TenantConfig:
    (demo,) = default_mesh({}).tenants
    limits = replace(demo.limits, requests_per_minute=requests, tokens_per_minute=tokens, tokens_per_day=day)
    return replace(demo, name=name, limits=limits)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
async def limits(request: pytest.FixtureRequest, open_shared: Any) -> AsyncIterator[Limits]:
    """One form of them; what follows holds for both."""
    if request.param == "memory":
        yield Limits(MonotonicClock())
        return
    server = request.getfixturevalue("start_redis")()
    # Buckets of its own would refuse first; the shared ones are what is tested.
    yield _SharedAlone(await open_shared(server.url))


class _SharedAlone(Limits):
    """Limits whose own buckets never refuse."""

    def __init__(self, shared: Any) -> None:
        super().__init__(MonotonicClock(), shared)

    def _refuse(self, tenant: TenantConfig, wanted: Any) -> None:
        pass


async def refused(limits: Limits, who: TenantConfig, tokens: float) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await limits.hold(who, tokens)
    return caught.value


async def until_refused(limits: Limits, who: TenantConfig) -> QuotaExceeded:
    """A settlement is on its way for a moment."""
    async with asyncio.timeout(5):
        while True:
            try:
                limits.check(who)
            except QuotaExceeded as error:
                return error
            await asyncio.sleep(0.002)


async def until_held(limits: Limits, who: TenantConfig, tokens: float) -> float:
    """Asks until it is let in; how long that took."""
    begun = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):
        while True:
            try:
                await limits.hold(who, tokens)
                return asyncio.get_running_loop().time() - begun
            except QuotaExceeded as error:
                await asyncio.sleep(min(error.retry_after_s or 60.0, 0.05))


async def test_a_minute_gives_a_minutes_worth(limits: Limits) -> None:
    who = tenant(2, 1000)
    await limits.hold(who, 1)
    await limits.hold(who, 1)
    error = await refused(limits, who, 1)
    assert error.retry_after_s == pytest.approx(30.0, abs=3)
    assert [violation.field for violation in error.violations] == ["requests_per_minute"]
    with pytest.raises(QuotaExceeded, match="requests_per_minute"):
        await limits.look(who, 0)


async def test_what_is_used_up_comes_back_evenly(limits: Limits) -> None:
    who = tenant(100_000, 60_000)
    await limits.hold(who, 60_000)
    error = await refused(limits, who, 200)
    assert error.retry_after_s is not None
    assert error.retry_after_s <= 0.2
    await until_held(limits, who, 200)
    error = await refused(limits, who, 60_000)
    assert error.retry_after_s is not None
    assert 50 < error.retry_after_s <= 60


async def test_what_was_not_used_is_given_back_and_more_is_owed(limits: Limits) -> None:
    who = tenant(1000, 100)
    limits.settle(await limits.hold(who, 80), 10)
    assert await until_held(limits, who, 85) < 5
    reservation = Reservation(who, 85, shared=True)
    await refused(limits, who, 20)
    limits.settle(reservation, 150)
    error = await until_refused(limits, who)
    assert [violation.field for violation in error.violations] == ["tokens_per_minute"]
    assert error.retry_after_s == pytest.approx(37.0, abs=3)  # 61 tokens short, at 100 a minute


async def test_a_budget_of_a_day_is_kept_beside_the_minute(limits: Limits) -> None:
    who = tenant(1000, 100_000, day=500)
    await limits.hold(who, 400)
    error = await refused(limits, who, 200)
    assert [violation.field for violation in error.violations] == ["tokens_per_day"]
    assert error.retry_after_s == pytest.approx(100 / 500 * 86_400, rel=0.01)
    await limits.hold(who, 100)
    with pytest.raises(QuotaExceeded, match=r"tokens_per_day \(500\)"):
        limits.check(who)


async def test_a_request_larger_than_the_limit_needs_all_of_it(limits: Limits) -> None:
    who = tenant(1000, 100)
    limits.settle(await limits.hold(who, 5000), 100)
    async with asyncio.timeout(5):
        while (await refused(limits, who, 5000)).retry_after_s != pytest.approx(60, abs=3):
            pass


async def test_who_is_refused_has_taken_nothing(limits: Limits) -> None:
    who = tenant(3, 100)
    for _ in range(5):
        await refused(limits, who, 60) if _ else await limits.hold(who, 60)
    await limits.hold(who, 40)
    await limits.hold(who, 0)
    await refused(limits, who, 0)


async def test_tenants_have_their_own(limits: Limits) -> None:
    one, other = tenant(1, 100), tenant(1, 100, name="other")
    await limits.hold(one, 1)
    await refused(limits, one, 1)
    await limits.hold(other, 1)


async def test_other_limits_count_at_once_and_what_was_used_stays_used(limits: Limits) -> None:
    await limits.hold(tenant(1, 100), 50)
    await limits.hold(tenant(5, 100), 50)
    await refused(limits, tenant(5, 100), 20)
    await limits.hold(tenant(5, 150), 40)
    await refused(limits, tenant(2, 1000), 1)


async def test_what_a_node_reports_counts_like_the_rest(limits: Limits) -> None:
    who = tenant(1000, 100)
    await limits.hold(who, 0)
    limits.check(who)
    limits.charge(who, 130)
    assert (await until_refused(limits, who)).retry_after_s == pytest.approx(19, abs=3)


async def test_under_a_rush_exactly_the_limit_is_let_in(limits: Limits) -> None:
    who = tenant(40, 10**6)
    results = await asyncio.gather(*(limits.hold(who, 1) for _ in range(300)), return_exceptions=True)
    assert sum(not isinstance(result, QuotaExceeded) for result in results) == 40


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 60), st.floats(0, 60)), max_size=40))
def test_over_any_time_at_most_rate_plus_a_burst_is_used(steps: list[tuple[float, float, float]]) -> None:
    clock = HandClock()
    limits, who = Limits(clock), tenant(10**6, 60)
    used = 0.0
    for wait_s, wanted, actual in steps:
        clock.time += wait_s
        try:
            reservation = limits.reserve(who, wanted)
        except QuotaExceeded:
            continue
        limits.settle(reservation, min(actual, wanted))
        used += min(actual, wanted)
        assert used <= 60 + clock.time + 1e-6

"""Two routers, one tenant: its limits hold over both; and what becomes of them with Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tiermesh.common.admin_stub import explain, router_status
from tiermesh.common.errors import QuotaExceeded
from tiermesh.common.types import CacheControl, Finished, Request

pytestmark = pytest.mark.redis

Share = Callable[..., Awaitable[Any]]


def asked(prompt: object) -> Request:
    return Request(str(prompt), 4, cache=CacheControl.BYPASS)


async def outcomes(routers: list[Any], count: int) -> list[Any]:
    """So many requests at each router, all at once."""
    calls = [router.client.events(asked(f"{at} {n}")) for at, router in enumerate(routers) for n in range(count)]
    return await asyncio.gather(*calls, return_exceptions=True)


async def both(toy: Any, share: Share, worker: Any, budget_s: float = 5.0, **limits: int) -> list[Any]:
    given = {"requests_per_minute": 10_000, "tokens_per_minute": 10**6, **limits}
    tenants = (toy.tenant("demo", **given),)
    routers = [await share(worker, tenants=tenants, budget_s=budget_s, lease_s=1.0) for _ in range(2)]
    await toy.until(lambda: all(router.service._core.shared.line.up for router in routers))
    return routers


async def test_requests_per_minute_are_exact_over_both(toy: Any, start_worker: Any, share: Share) -> None:
    routers = await both(toy, share, await start_worker(slots=64), requests_per_minute=20)
    results = await outcomes(routers, 30)
    assert sum(isinstance(result, list) for result in results) == 20
    refused = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(error, QuotaExceeded) and error.retry_after_s for error in refused)
    told = await explain(routers[1].address, "demo", asked("x"), "")
    assert told.error is not None
    assert told.error.reason == "QUOTA_EXCEEDED"
    status = await router_status(routers[0].address, "")
    used = {limit.name: limit.used for limit in status.tenants[0].limits}
    assert (status.limits, used["requests_per_minute"]) == ("redis", pytest.approx(20, abs=2))


async def test_concurrency_is_exact_over_both(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker(slots=64, step_s=0.001)
    routers = await both(toy, share, worker, concurrent=3)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(router.running for router in routers))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    results = await outcomes(routers, 12)
    watching.cancel()
    assert all(isinstance(result, list) and isinstance(result[-1], Finished) for result in results)
    assert most == 3


async def test_tokens_used_at_one_count_at_the_other(toy: Any, start_worker: Any, share: Share) -> None:
    one, other = await both(toy, share, await start_worker(), tokens_per_minute=100)
    for number in range(10):  # nine tokens each: five of the prompt, four of the answer
        await one.client.events(asked(number))
    async with asyncio.timeout(10):
        while True:
            try:
                await other.client.events(replace(asked("x"), max_tokens=30))
            except QuotaExceeded as error:
                assert [violation.field for violation in error.violations] == ["tokens_per_minute"]  # noqa: PT017
                return


@pytest.mark.parametrize("fault", ["killed", "stopped"])
async def test_without_redis_requests_go_on_under_each_routers_own_limits(
    toy: Any, start_worker: Any, share: Share, server: Any, fault: str
) -> None:
    routers = await both(toy, share, await start_worker(slots=64), budget_s=0.02, requests_per_minute=12)
    server.kill() if fault == "killed" else server.pause()
    begun = time.monotonic()
    results = await outcomes(routers, 20)
    assert time.monotonic() - begun < 5
    assert sum(isinstance(result, list) for result in results) == 24  # a minute's worth at each
    assert (await router_status(routers[0].address, "")).limits == "redis_away"
    server.start() if fault == "killed" else server.resume()
    await toy.until(lambda: all(router.service._core.shared.line.up for router in routers), 20)

"""What a router tells its operators about itself."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import pytest

from tiermesh.common.admin_stub import router_status
from tiermesh.common.errors import Overloaded, Unauthenticated
from tiermesh.common.keys import key_hash
from tiermesh.common.types import CacheControl, Request


def past(prompt: str, tier: str = "standard") -> Request:
    return Request(prompt, 4, tier=tier, cache=CacheControl.BYPASS)


async def test_tiers_tenants_and_workers_are_told_and_no_key(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(slots=1, stop_before=1)
    tenants = (toy.tenant("demo", queued=2), toy.tenant("other", tokens_per_minute=100))
    router = await start_router(worker, tenants=tenants)
    tasks = [asyncio.create_task(router.client.events(past(f"p{n}"))) for n in range(4)]
    await toy.until(lambda: router.running == 2 and router.sample("queue_length", tier="standard") == 2)
    with pytest.raises(Overloaded):
        await router.client.events(past("more"))
    await toy.until(lambda: worker.running == 2)

    status = await router_status(router.address, "")
    tiers = {tier.name: tier for tier in status.tiers}
    assert list(tiers) == ["realtime", "standard", "batch"]
    assert (tiers["standard"].waiting, tiers["standard"].running) == (2, 2)
    assert (tiers["standard"].offered, tiers["standard"].attained) == (1, 0)  # a refusal is a miss
    assert 0 <= tiers["standard"].lag < tiers["standard"].lag_bound
    demo, other = status.tenants
    assert (demo.name, demo.running, demo.waiting) == ("demo", 2, 2)
    used = {limit.name: (round(limit.used), limit.limit) for limit in demo.limits}
    assert used["requests_per_minute"] == (5, 600)  # the refused one was asked, too
    assert used["concurrent"] == (2, 32)
    assert used["queued"] == (2, 2)
    assert {limit.name: limit.limit for limit in other.limits}["tokens_per_minute"] == 100
    (told,) = status.workers
    assert (told.address, told.state, told.in_flight, told.limit) == (worker.address, "up", 2, 2)
    assert (status.limits, status.retries, status.retries_allowed) == ("memory", 0, 10)
    assert "sha256" not in str(asdict(status))
    assert "key" not in str(asdict(status))

    worker.gate.set()
    for task in tasks:
        await task
    await router.client.events(past("quick", tier="batch"))
    tiers = {tier.name: tier for tier in (await router_status(router.address, "")).tiers}
    assert tiers["standard"].offered == 5
    assert (tiers["batch"].offered, tiers["batch"].attained) == (1, 1)
    assert router.sample("in_time_total", tier="batch") == 1


async def test_it_is_for_operators(start_worker: Any, start_router: Any) -> None:
    router = await start_router(await start_worker(), admin_keys=(key_hash("operator-key"),))
    for wrong in ("", "demo-key"):
        with pytest.raises(Unauthenticated, match="operator's key"):
            await router_status(router.address, wrong)
    assert (await router_status(router.address, "operator-key")).workers


async def test_a_worker_that_is_away_is_told_as_such(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker()
    router = await start_router(worker)
    await worker.kill()
    await toy.until(lambda: not router.service.ready)
    (told,) = (await router_status(router.address, "")).workers
    assert (told.state, told.slots) == ("away", 0)

"""Explain: its verdict is what then happens to the very same request, and asking changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tiermesh import AsyncClient, Explanation
from tiermesh.common.admin_stub import explain
from tiermesh.common.errors import InvalidRequest, TiermeshError, Unauthenticated
from tiermesh.common.keys import key_hash
from tiermesh.common.types import CacheControl, Finished, Request

ASKED = Request("hello", 6)


def tenants(toy: Any) -> tuple[Any, ...]:
    return (
        toy.tenant("demo", queued=2, concurrent=4),
        toy.tenant("poor", tokens_per_minute=30, requests_per_minute=2),
        toy.tenant("low", tiers=("batch",)),
    )


def facts(router: Any) -> tuple[object, ...]:
    """What Explain must leave alone, beside the schedule itself, which `test_rehearsal.py` compares in full."""
    scheduler = router.service._core.parts.slots.scheduler
    core = router.service._core
    limits = [core.parts.limits.used(tenant) for tenant in router.mesh.tenants]
    tiers = [scheduler.queued(tier.name) for tier in router.mesh.tiers]
    samples = [
        (sample.name, sample.labels, sample.value)
        for family in core.metrics.registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    return limits, tiers, scheduler.running_costs, dict(scheduler.lags), samples, core.parts.store.known


async def outcome(router: Any, request: Request, key: str) -> TiermeshError | Finished:
    try:
        return (await router.client.events(request, key))[-1]  # type: ignore[no-any-return]
    except TiermeshError as error:
        return error


async def agrees(router: Any, toy: Any, tenant: str, request: Request) -> Explanation:
    """Asks for the verdict, then for the answer, and compares."""
    before = facts(router)
    told = await explain(router.address, tenant, request, "")
    await explain(router.address, tenant, request, "")
    after = facts(router)
    assert after[1:] == before[1:]
    assert all(now[name] <= then[name] for now, then in zip(after[0], before[0], strict=True) for name in then)
    task = asyncio.create_task(outcome(router, request, f"{tenant}-key"))
    if told.admitted and told.starts_in_s != 0.0:
        await toy.until(lambda: router.sample("queue_length", tier=told.tier) > 0)
        router.worker.gate.set()
    ended = await task
    if told.error is None:
        assert isinstance(ended, Finished), ended
        assert ended.usage.cached == (told.source == "cache")
    else:
        assert isinstance(ended, TiermeshError)
        assert type(ended) is type(told.error)
        assert not told.admitted
        # The delay is measured again when the request itself comes, a moment later.
        assert (ended.retry_after_s or 0.0) == pytest.approx(told.error.retry_after_s or 0.0, abs=0.5)
    return told


async def full(router: Any, toy: Any, waiting: int) -> list[asyncio.Task[Any]]:
    """Takes both slots of the one worker, and lets so many wait."""
    tasks = [asyncio.create_task(outcome(router, Request(f"p{i}", 6), "demo-key")) for i in range(2 + waiting)]
    await toy.until(lambda: router.running == 2 and router.sample("queue_length", tier="standard") == waiting)
    await toy.until(lambda: router.sample("ttft_seconds_count", tier="standard") == 2)
    return tasks


STATES: dict[str, tuple[int | None, str, Request, Callable[[Explanation], bool]]] = {
    "idle": (None, "demo", ASKED, lambda told: told.source == "worker" and told.starts_in_s == 0.0),
    "a tier that is not the tenant's": (None, "low", replace(ASKED, tier="realtime"), lambda told: not told.admitted),
    "its own tier": (None, "low", ASKED, lambda told: told.tier == "batch"),
    "a field that is wrong": (None, "demo", replace(ASKED, max_tokens=0), lambda told: not told.admitted),
    "another model": (None, "demo", replace(ASKED, model="other"), lambda told: not told.admitted),
    "larger than a minute's worth": (None, "poor", replace(ASKED, max_tokens=60), lambda told: told.admitted),
    "slots are taken": (0, "demo", ASKED, lambda told: (told.source, told.place) == ("worker", 0)),
    "one waits": (1, "demo", ASKED, lambda told: told.place == 1),
    "one waits below": (1, "demo", replace(ASKED, tier="realtime"), lambda told: told.place == 0),
    "the queue is full": (2, "demo", ASKED, lambda told: not told.admitted),
    "the queue of another is full": (2, "low", ASKED, lambda told: told.admitted and told.place == 2),
}


@pytest.mark.parametrize("state", STATES)
async def test_the_verdict_is_what_happens(toy: Any, start_worker: Any, start_router: Any, state: str) -> None:
    waiting, tenant, request, expected = STATES[state]
    worker = await start_worker(slots=1, stop_before=None if waiting is None else 1)
    router = await start_router(worker, tenants=tenants(toy))
    router.worker = worker
    tasks = [] if waiting is None else await full(router, toy, waiting)
    told = await agrees(router, toy, tenant, request)
    assert expected(told), told
    assert told.steps
    assert (told.worker == worker.address) == (told.source == "worker")
    worker.gate.set()
    for task in tasks:
        assert isinstance(await task, Finished)


async def test_after_a_minutes_requests_the_told_delay_is_that_of_the_limit(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    router = await start_router(await start_worker(), tenants=tenants(toy))
    for prompt in "ab":
        await router.client.events(Request(prompt, 4), "poor-key")
    told = await agrees(router, toy, "poor", ASKED)
    assert told.error is not None
    assert told.error.reason == "QUOTA_EXCEEDED"
    assert [violation.field for violation in told.error.violations][:1] == ["requests_per_minute"]


async def test_what_the_cache_has_and_what_is_under_way_is_told(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(slots=1, stop_before=1)
    router = await start_router(worker, tenants=tenants(toy))
    first = asyncio.create_task(outcome(router, ASKED, "demo-key"))
    await toy.until(lambda: worker.running == 1)
    told = await explain(router.address, "demo", ASKED, "")
    assert (told.source, told.admitted) == ("flight", True)
    worker.gate.set()
    assert isinstance(await first, Finished)
    assert (await agrees(router, toy, "demo", ASKED)).source == "cache"
    past = replace(ASKED, cache=CacheControl.BYPASS)
    assert (await agrees(router, toy, "demo", past)).source == "worker"
    assert (await explain(router.address, "low", ASKED, "")).source == "worker"


async def test_without_workers_or_while_it_stops_it_says_so(start_worker: Any, start_router: Any) -> None:
    router = await start_router("127.0.0.1:1", wait=False)
    told = await explain(router.address, "demo", replace(ASKED, deadline_s=0.1), "")
    assert told.error is not None
    assert told.error.reason == "NO_WORKERS"
    router.service.drain()
    told = await explain(router.address, "demo", ASKED, "")
    assert told.error is not None
    assert told.error.reason == "DRAINING"


async def test_it_is_for_operators_and_for_tenants_that_there_are(start_worker: Any, start_router: Any) -> None:
    router = await start_router(await start_worker(), admin_keys=(key_hash("operator-key"),))
    for wrong in ("", "demo-key"):
        with pytest.raises(Unauthenticated, match="operator's key"):
            await explain(router.address, "demo", ASKED, wrong)
    async with AsyncClient(router.address, api_key="operator-key") as client:
        told = await client.explain("hello", tenant="demo", max_tokens=6, tier="realtime")
        assert (told.admitted, told.tier) == (True, "realtime")
        for tenant in ("dem", ""):
            with pytest.raises(InvalidRequest, match="tenant"):
                await client.explain("hello", tenant=tenant)

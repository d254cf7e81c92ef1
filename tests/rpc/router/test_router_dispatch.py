"""Dispatch over real gRPC: affinity, ejection and trial, the retry budget, and drains without loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tiermesh.common.admin_stub import router_status
from tiermesh.common.errors import Unavailable
from tiermesh.common.frames import Load
from tiermesh.common.types import CacheControl, Request, Tokens

LONG = "a beginning that many prompts of this tenant share, word by word, " * 3


def past(prompt: str, length: int = 4) -> Request:
    return Request(prompt, length, cache=CacheControl.BYPASS)


def ids_of(events: list[Any]) -> list[int]:
    return [i for event in events if isinstance(event, Tokens) for i in event.ids]


async def states(router: Any) -> dict[str, str]:
    return {worker.address: worker.state for worker in (await router_status(router.address, "")).workers}


async def test_prompts_that_begin_alike_go_to_one_worker_until_it_is_busy(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    workers = [await start_worker(slots=7) for _ in range(3)]
    router = await start_router(*workers)
    await toy.until(lambda: router.sample("slots") == 24)
    for number in range(12):
        await router.client.events(past(f"{LONG}{number}"))
    assert sorted(len(worker.opens) for worker in workers) == [0, 0, 12]
    for worker in workers:
        worker.stop_before = 1
    begun = [router.client.begin(past(f"{LONG}again {number}")) for number in range(12)]
    await toy.until(lambda: sum(worker.running for worker in workers) == 12)
    assert max(worker.running for worker in workers) <= 8
    for worker in workers:
        worker.gate.set()
    for task, _ in begun:
        await task


async def test_realtime_is_sent_beyond_the_slots_before_it_is_late_and_the_limit_stays(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    """One slot and one that waits there are taken by lower tiers; a second realtime request finds no room left."""
    worker = await start_worker(slots=1, stop_before=1)
    router = await start_router(worker)
    await toy.until(lambda: router.sample("room") == 1)
    begun = [router.client.begin(replace(past(f"low {number}"), tier="standard")) for number in range(3)]
    await toy.until(lambda: worker.running == 2)
    begun += [router.client.begin(replace(past(f"high {number}"), tier="realtime")) for number in range(2)]
    await toy.until(lambda: worker.running == 3)
    assert worker.opens[-1].request.tier == "realtime"
    worker.load = {"running": 1, "waiting": 2}
    seen = router.service._core.parts.registry.workers[0].link.messages
    await toy.until(lambda: router.service._core.parts.registry.workers[0].link.messages >= seen + 2)
    assert router.sample("slots") == 2
    assert worker.running == 3
    worker.gate.set()
    for task, _ in begun:
        await task


async def test_a_worker_that_was_set_aside_gets_one_request_and_then_all(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    workers = [await start_worker(slots=7) for _ in range(2)]
    router = await start_router(*workers)
    await toy.until(lambda: router.sample("slots") == 16)
    for _ in range(3):
        with pytest.raises(Unavailable, match="poisoned"):
            await router.client.events(past("poison"))
    assert sorted((await states(router)).values()) == ["ejected", "up"]
    await toy.until(lambda: router.sample("slots") == 9)  # the other's eight, and one to try it with
    assert sorted((await states(router)).values()) == ["trial", "up"]
    await router.client.events(past("well"))
    await toy.until(lambda: router.sample("slots") == 16)
    assert set((await states(router)).values()) == {"up"}


async def test_past_the_retry_budget_a_failure_is_told_at_once(toy: Any, start_worker: Any, start_router: Any) -> None:
    router = await start_router(await start_worker(), await start_worker())
    seen: list[str] = []
    for number in range(12):
        with pytest.raises(Unavailable) as caught:
            await router.client.events(past(f"poison {number}"))
        seen.append(caught.value.message)
    assert "poisoned" in seen[0]
    assert "tried again already" in seen[-1]
    assert caught.value.retry_after_s
    status = await router_status(router.address, "")
    assert status.retries == status.retries_allowed
    assert ids_of(await router.client.events(past("well"))) == toy.ids(past("well"), 4)


async def test_a_worker_that_drains_finishes_what_it_has_and_gets_nothing_new(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    workers = [await start_worker(stop_before=2) for _ in range(2)]
    router = await start_router(*workers)
    await toy.until(lambda: router.sample("slots") == 18)
    begun = [router.client.begin(past(f"p{number}", 8)) for number in range(8)]
    await toy.until(lambda: all(len(ids_of(seen)) == 2 for _, seen in begun))
    drains, other = workers
    had, others = len(drains.opens), len(other.opens)
    assert had
    drains.peers[0].send(Load(8, had, 0, 1.0, 0.001, draining=True))
    await toy.until(lambda: router.sample("slots") == 9)
    assert (await states(router))[drains.address] == "draining"
    other.gate.set()
    await router.client.events(past("new"))
    drains.gate.set()
    for number, (task, _) in enumerate(begun):
        assert ids_of(await task) == toy.ids(past(f"p{number}", 8), 8)
    assert (len(drains.opens), len(other.opens)) == (had, others + 1)
    assert router.sample("resumed_total") == 0


async def test_a_worker_that_leaves_the_configuration_finishes_what_it_has(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    leaves, stays = await start_worker(stop_before=2), await start_worker()
    router = await start_router(leaves)
    task, seen = router.client.begin(past("p", 8))
    await toy.until(lambda: len(ids_of(seen)) == 2)
    mesh = replace(router.mesh, router=replace(router.mesh.router, workers=(stays.address,)))
    router.service.reload(mesh)
    await toy.until(lambda: router.sample("worker_up", worker=stays.address) == 1)
    assert (await states(router))[leaves.address] == "leaving"
    await router.client.events(past("new"))
    leaves.gate.set()
    assert ids_of(await task) == toy.ids(past("p", 8), 8)
    assert (len(leaves.opens), len(stays.opens)) == (1, 1)
    await toy.until(lambda: len(router.service._core.parts.registry.workers) == 1)
    assert list(await states(router)) == [stays.address]
    router.service.reload(router.mesh)
    await toy.until(lambda: router.sample("worker_up", worker=leaves.address) == 1)

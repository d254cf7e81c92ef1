"""Workers that are slow, that come and go, or that lie about how busy they are: answers stay whole."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from structlog.testing import capture_logs

from tiermesh.common.rpc import RpcServer
from tiermesh.common.types import CacheControl, Finished, Request, Tokens

LENGTH = 12


def request(number: int) -> Request:
    return Request(f"prompt {number}", LENGTH, cache=CacheControl.BYPASS)


async def check(toy: Any, asked: Request, events: list[Any]) -> None:
    """The answer is whole, and the model's own."""
    assert isinstance(events[-1], Finished)
    ids = tuple(i for event in events if isinstance(event, Tokens) for i in event.ids)
    assert ids == tuple(toy.ids(asked, LENGTH))


async def ask_all(toy: Any, router: Any, clients: int, each: int) -> None:
    """So many clients, each with so many requests one after the other."""

    async def client(first: int) -> None:
        for number in range(first, first + each):
            await check(toy, request(number), await router.client.events(request(number)))

    await asyncio.gather(*(client(1000 * i) for i in range(clients)))


async def test_a_slow_worker_gets_what_it_can_do(toy: Any, start_worker: Any, start_router: Any) -> None:
    slow, quick = await start_worker(slots=4, step_s=0.02), await start_worker(slots=4)
    router = await start_router(slow, quick)
    await toy.until(lambda: router.sample("slots") == 10)
    await ask_all(toy, router, clients=10, each=15)
    assert len(slow.opens) + len(quick.opens) == 150, "nothing had to be begun twice"
    assert 1 <= len(slow.opens) <= 50, "it holds no more than its slots, for as long as it takes"
    assert [router.sample("worker_up", worker=worker.address) for worker in (slow, quick)] == [1, 1]


async def test_a_worker_that_comes_and_goes_is_set_aside_longer_each_time(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    steady, flapping = await start_worker(step_s=0.005), await start_worker(step_s=0.005)
    router = await start_router(steady, flapping)
    await toy.until(lambda: router.sample("slots") == 18)
    number = 0
    with capture_logs() as logs:

        def set_aside() -> list[float]:
            return [one["seconds"] for one in logs if one["event"] == "worker_ejected" and one["cause"] == "flaps"]

        for times in range(4):
            asked = [request(number + i) for i in range(8)]
            number += len(asked)
            tasks = [asyncio.create_task(router.client.events(one)) for one in asked]
            await toy.until(lambda: steady.running + flapping.running == 8)
            assert (flapping.running > 0) == (times < 2), "who is set aside gets nothing"
            await flapping.kill()
            for one, task in zip(asked, tasks, strict=True):
                await check(toy, one, await task)
            flapping.server = RpcServer()
            await flapping.start(flapping.address)
            if times == 0:
                await toy.until(lambda: router.sample("worker_up", worker=flapping.address) == 1)
            else:
                await toy.until(lambda times=times: len(set_aside()) == times)
                assert router.sample("worker_up", worker=flapping.address) == 0
    assert set_aside() == [1.0, 2.0, 4.0]
    await toy.until(lambda: router.running == 0)


async def test_one_that_was_set_aside_is_taken_when_the_others_are_gone(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    steady, failing = await start_worker(), await start_worker()
    router = await start_router(steady, failing)
    await toy.until(lambda: router.sample("slots") == 18)
    (worker,) = (one for one in router.service._core.parts.registry.workers if one.address == failing.address)
    for _ in range(3):
        router.service._core.parts.registry.failed(worker)
    assert router.sample("worker_up", worker=failing.address) == 0
    await steady.kill()
    await toy.until(lambda: router.sample("worker_up", worker=steady.address) == 0)
    await check(toy, request(1), await router.client.events(request(1)))
    assert len(failing.opens) == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"slots": 2**32 - 1},
        {"slots": 0},
        {"waiting": 2**32 - 1},
        {"kv_free": math.nan, "step_s": math.nan},
        {"kv_free": -math.inf, "step_s": -1.0},
        {"kv_free": 1e30, "prefix_hit": math.nan, "preemptions": 2**64 - 1},
    ],
    ids=str,
)
async def test_a_worker_that_lies_about_its_load_gets_a_sane_share(
    toy: Any, start_worker: Any, start_router: Any, lie: dict[str, Any]
) -> None:
    liar, honest = await start_worker(slots=8), await start_worker(slots=8)
    router = await start_router(liar, honest)
    await toy.until(lambda: router.sample("slots") == 18)
    liar.load |= lie
    for _ in range(4):
        for peer in liar.peers:
            peer.tell()
        await ask_all(toy, router, clients=8, each=5)
        assert 1 <= router.sample("worker_limit", worker=liar.address) <= 1025
        assert router.sample("worker_limit", worker=honest.address) == 9
        assert router.sample("slots") == sum(
            router.sample("worker_limit", worker=worker.address) for worker in (liar, honest)
        )
    assert honest.opens
    liar.load.clear()
    for _ in range(10):
        liar.peers[0].tell()
    await toy.until(lambda: router.sample("slots") == 18)
    await toy.until(lambda: router.running == 0)

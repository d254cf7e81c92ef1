"""Workers that announce themselves, over real gRPC."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tiermesh.cloud.announcer import Announcer
from tiermesh.common.errors import Forbidden, InvalidRequest, TiermeshError, Unauthenticated
from tiermesh.common.registry_servicer import RegistryServicer
from tiermesh.common.registry_stub import announce
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.types import Request

TOKEN = "what-routers-and-workers-share"


@asynccontextmanager
async def announcing(router: Any, worker: Any) -> AsyncIterator[Announcer]:
    """A worker that tells a router of itself, until the end or until it takes its leave."""
    announcer = Announcer([router.address], worker.address, TOKEN)
    announcer.start()
    try:
        yield announcer
    finally:
        await announcer.leave()


async def test_an_announced_worker_answers_and_one_that_leaves_ends_what_it_has(
    start_router: Any, start_worker: Any, toy: Any
) -> None:
    router = await start_router(worker_token=TOKEN)
    leaving, staying = await start_worker(stop_before=1), await start_worker()
    async with announcing(router, leaving) as announcer:
        await toy.until(lambda: router.service.ready)
        answer, _ = router.client.begin(Request("first", 4, model="toy"))
        await toy.until(lambda: bool(leaving.opens))
        async with announcing(router, staying):
            await toy.until(lambda: bool(staying.peers))
            await announcer.leave()
            assert len(await router.client.events(Request("second", 4, model="toy"))) >= 3
            assert (len(leaving.opens), len(staying.opens)) == (1, 1)
            leaving.gate.set()
            assert (await answer)[-1].usage.completion_tokens == 4
            assert not leaving.closes
            await toy.until(lambda: states(router) == {staying.address: "up"})


async def test_a_worker_that_says_nothing_any_more_is_let_go(
    start_router: Any, start_worker: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, worker = await start_router(worker_token=TOKEN), await start_worker()
    async with channel(router.address) as chan:
        lease_s = await announce(chan, worker.address, TOKEN, leaving=False)
    await toy.until(lambda: router.service.ready)
    router.service.forget_workers()
    assert states(router) == {worker.address: "up"}
    now, clock = router.service._clock.now(), router.service._clock
    for second in range(math.ceil(lease_s) + 1):
        monkeypatch.setattr(clock, "now", lambda at=now + second: at)
        router.service.forget_workers()
    await toy.until(lambda: states(router) == {})


async def test_a_router_that_comes_back_is_told_again(start_router: Any, start_worker: Any, toy: Any) -> None:
    """The first one is gone before it hears anything; the second one listens at the same address."""
    router, worker = await start_router(worker_token=TOKEN), await start_worker()
    address = router.address
    await router.server.stop(0)
    async with announcing(router, worker):
        later = await start_router(worker_token=TOKEN)
        again = RpcServer()
        again.add_registry(RegistryServicer(later.service))
        await again.start(address)
        try:
            await toy.until(lambda: later.service.ready, timeout_s=10.0)
        finally:
            await again.stop(0)


async def test_a_worker_that_is_in_the_configuration_too_stays_when_it_leaves(
    start_router: Any, start_worker: Any, toy: Any
) -> None:
    worker = await start_worker()
    router = await start_router(worker, worker_token=TOKEN)
    async with announcing(router, worker):
        await toy.until(lambda: states(router) == {worker.address: "up"})
    assert states(router) == {worker.address: "up"}


@pytest.mark.parametrize(
    ("known", "shown", "expected"),
    [(None, TOKEN, Forbidden), (TOKEN, "another", Unauthenticated), (TOKEN, None, Unauthenticated)],
)
async def test_who_does_not_show_the_token_announces_nothing(
    start_router: Any, start_worker: Any, known: str | None, shown: str | None, expected: type[TiermeshError]
) -> None:
    router, worker = await start_router(worker_token=known), await start_worker()
    async with channel(router.address) as chan:
        for leaving in (False, True):
            with pytest.raises(expected, match="worker_token"):
                await announce(chan, worker.address, shown, leaving=leaving)
    assert states(router) == {}


async def test_an_address_that_is_none_is_refused_and_everything_lives(start_router: Any, start_worker: Any) -> None:
    worker = await start_worker()
    router = await start_router(worker, worker_token=TOKEN)
    async with channel(router.address) as chan:
        with pytest.raises(InvalidRequest, match="host:port"):
            await announce(chan, "a line\nand more:80", TOKEN, leaving=False)
    assert len(await router.client.events(Request("hello", 2, model="toy"))) >= 3


def states(router: Any) -> dict[str, str]:
    """Of all workers that the router knows."""
    registry = router.service._core.parts.registry
    return {worker.address: worker.state(registry._clock.now()) for worker in registry.workers}

"""Whatever becomes of Redis, clients get their answers: no error, none wrong, none that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tiermesh.common.types import Finished, FinishReason, Request, Tokens

pytestmark = pytest.mark.redis

LENGTH = 16
HALF = 7
Share = Callable[..., Awaitable[Any]]


def ids_of(events: list[Any]) -> tuple[int, ...]:
    return tuple(i for event in events if isinstance(event, Tokens) for i in event.ids)


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Tokens))


def spoil(server: Any) -> None:
    """Every string that lies in Redis becomes another."""
    for name in server.client.keys("tm:*"):
        if server.client.type(name) == b"string":
            server.client.set(name, bytes(byte ^ 1 for byte in server.client.get(name)))


FAULTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "killed": (lambda server: server.kill(), lambda server: server.start()),
    "stopped": (lambda server: server.pause(), lambda server: server.resume()),
    "full": (
        lambda server: server.client.config_set("maxmemory", "1"),
        lambda server: server.client.config_set("maxmemory", "0"),
    ),
    "emptied": (lambda server: server.client.flushall(), lambda server: None),
    "spoilt": (spoil, lambda server: None),
    "restarted": (lambda server: (server.kill(), server.start()), lambda server: None),
    "read-only": (
        lambda server: server.client.replicaof("127.0.0.1", "1"),
        lambda server: server.client.replicaof("NO", "ONE"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_clients_never_notice(toy: Any, start_worker: Any, share: Share, server: Any, fault: str) -> None:
    worker = await start_worker()
    router = await share(worker, budget_s=0.005)

    async def ask(prompt: str) -> Finished:
        request = Request(prompt, LENGTH)
        events = await router.client.events(request)
        assert ids_of(events) == tuple(toy.ids(request, LENGTH))
        assert text_of(events) == toy.text(toy.ids(request, LENGTH))
        assert events[-1].reason is FinishReason.STOP
        return events[-1]  # type: ignore[no-any-return]

    await ask("known")
    breaks, mends = FAULTS[fault]
    breaks(server)
    for number in range(12):
        await ask("known")
        await ask(f"new {number}")
    mends(server)
    async with asyncio.timeout(15):
        while not (await ask("known")).usage.cached:  # noqa: ASYNC110 - it asks
            await asyncio.sleep(0.02)
    await toy.until(lambda: router.running == 0)


async def test_under_load_it_is_killed_and_comes_back(toy: Any, start_worker: Any, share: Share, server: Any) -> None:
    """Thirty clients go on all the while, each with a question that all ask and one of its own."""
    worker = await start_worker()
    router = await share(worker, budget_s=0.2)
    over, answers = asyncio.Event(), 0

    async def client(name: int) -> None:
        nonlocal answers
        number = 0
        while not over.is_set():
            number += 1
            for prompt in ("known", f"{name} asks {number}"):
                request = Request(prompt, LENGTH)
                assert ids_of(await router.client.events(request)) == tuple(toy.ids(request, LENGTH))
                answers += 1

    async def more(count: int) -> None:
        wanted = answers + count
        await toy.until(lambda: answers >= wanted or any(task.done() for task in tasks), 20.0)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(name)) for name in range(30)]
        await more(100)
        server.kill()
        await more(200)
        await asyncio.to_thread(server.start)
        hits = router.sample("cache_total", result="hit")
        await toy.until(lambda: router.sample("cache_total", result="hit") > hits + 20, 20.0)
        over.set()
    await toy.until(lambda: router.running == 0 and router.service._answers.running == 0)


@pytest.mark.parametrize("fault", ["killed", "stopped", "emptied", "spoilt", "restarted"])
async def test_neither_do_those_who_lead_and_follow(
    toy: Any, start_worker: Any, share: Share, server: Any, fault: str
) -> None:
    worker = await start_worker(stop_before=HALF)
    one, other = await share(worker, budget_s=0.2), await share(worker, budget_s=0.2)
    request = Request("hello", LENGTH)
    first = asyncio.create_task(one.client.events(request))
    await toy.until(lambda: worker.running == 1)
    followers = [other.client.begin(request) for _ in range(5)]
    await toy.until(lambda: all(len(ids_of(seen)) == HALF for _, seen in followers))
    breaks, mends = FAULTS[fault]
    breaks(server)
    worker.gate.set()
    for task in (first, *(task for task, _ in followers)):
        events = await task
        assert ids_of(events) == tuple(toy.ids(request, LENGTH))
        assert text_of(events) == toy.text(toy.ids(request, LENGTH))
    assert len(worker.opens) <= 2
    mends(server)
    async with asyncio.timeout(15):
        while not (await other.client.events(request))[-1].usage.cached:  # noqa: ASYNC110 - it asks
            await asyncio.sleep(0.02)

"""A real worker process is killed, or stopped, in the middle of answers: every text is that of an undisturbed run."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tiermesh.common.types import CacheControl, Finished, Request, Sampling, Tokens
from tiermesh.training.random_model import write_random_model

LENGTH = 120


@dataclass
class Worker:
    """A process and the address that it listens on."""

    process: asyncio.subprocess.Process
    address: str


async def start_worker_process(model: Path) -> Worker:
    """Starts a worker on a free port and waits until it listens."""
    command = ["-P", "-m", "tiermesh.cloud.main", "--model", str(model), "--listen", "127.0.0.1:0", "--threads", "1"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        "--metrics",
        "127.0.0.1:0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=model,
    )
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode():
        if line.startswith("listening "):
            return Worker(process, line.split()[1])
    raise AssertionError("the worker ended before it listened")


@pytest.fixture
async def processes(tmp_path: Path, stack: AsyncExitStack) -> list[Worker]:
    """Two workers with the same model."""
    model = write_random_model(tmp_path / "model")
    workers = await asyncio.gather(*(start_worker_process(model) for _ in range(2)))
    for worker in workers:
        stack.push_async_callback(end, worker)
    return workers


async def end(worker: Worker) -> None:
    """Kills a worker unless it is dead already."""
    with suppress(ProcessLookupError):
        worker.process.kill()
    await worker.process.wait()


def requests() -> list[Request]:
    """Greedy and sampled ones, with seeds, past every cache."""
    return [
        Request(
            f"prompt number {i}",
            LENGTH,
            sampling=Sampling() if i % 2 else Sampling(temperature=0.8, seed=i),
            cache=CacheControl.BYPASS,
        )
        for i in range(6)
    ]


def answer(events: list[Any]) -> tuple[list[int], str]:
    tokens = [event for event in events if isinstance(event, Tokens)]
    return [i for event in tokens for i in event.ids], "".join(event.text for event in tokens)


@dataclass
class Busy:
    """Answers under way at both workers."""

    router: Any
    undisturbed: list[tuple[list[int], str]]
    tasks: list[asyncio.Task[list[Any]]]

    async def check(self) -> None:
        """They are all whole, and as if nothing had happened."""
        events = [await task for task in self.tasks]
        assert self.router.sample("resumed_total") >= 1
        assert all(isinstance(one[-1], Finished) for one in events)
        assert [answer(one) for one in events] == self.undisturbed
        again = await self.router.client.events(replace(requests()[0], prompt="afterwards"), timeout_s=30)
        assert isinstance(again[-1], Finished)


@pytest.fixture
async def busy(processes: Any, start_router: Any, toy: Any) -> Busy:
    """What they would answer, and the same under way."""
    addresses = [worker.address for worker in processes]
    router = await start_router(*addresses, wait=False)
    await toy.until(lambda: router.sample("worker_up", worker=addresses[0]) == 1, 20.0)
    await toy.until(lambda: router.sample("worker_up", worker=addresses[1]) == 1, 20.0)
    undisturbed = [answer(await router.client.events(request, timeout_s=30)) for request in requests()]
    begun: list[int] = [0] * len(undisturbed)

    async def follow(index: int, request: Request) -> list[Any]:
        events = []
        async for event in router.client.stream(request, timeout_s=60):
            events.append(event)
            begun[index] += isinstance(event, Tokens)
        return events

    tasks = [asyncio.create_task(follow(i, request)) for i, request in enumerate(requests())]
    await toy.until(lambda: min(begun) >= 2, 20.0)
    in_flight = [router.sample("worker_in_flight", worker=address) for address in addresses]
    assert min(in_flight) >= 1, "both workers must be at work"
    return Busy(router, undisturbed, tasks)


@pytest.mark.slow
async def test_answers_outlive_their_worker(processes: Any, busy: Busy) -> None:
    processes[0].process.send_signal(signal.SIGKILL)
    await busy.check()


@pytest.mark.slow
async def test_answers_outlive_a_worker_that_is_stopped(processes: Any, busy: Busy, toy: Any) -> None:
    """It says nothing, and its connection stands: what it had begun goes on elsewhere long before keepalive ends it."""
    stopped, other = processes
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(14):
            await busy.check()
        assert busy.router.sample("worker_up", worker=stopped.address) == 0
        assert busy.router.sample("worker_up", worker=other.address) == 1
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    await toy.until(lambda: busy.router.sample("worker_up", worker=stopped.address) == 1, 20.0)
    other.process.send_signal(signal.SIGKILL)
    last = await busy.router.client.events(replace(requests()[0], prompt="the other is gone"), timeout_s=30)
    assert isinstance(last[-1], Finished)

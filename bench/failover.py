"""One of two workers is killed in the middle of many answers: all finish, with the text of an undisturbed run."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

from .. import Answer, AsyncClient, Tokens
from ..answer import Gatherer
from ..common.config import DEMO_KEY
from ..process import ServiceProcess
from ..status import read_all
from .processes import started
from .prompts import heldout
from .results import require_green, write_result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one kill."""

    answers: int
    in_flight: int
    """Answers that had tokens and were not complete when the worker died."""
    moved: int
    """Answers that the surviving worker finished for the dead one."""
    different: int
    """Answers whose ids or text are not those of the undisturbed run."""


@asynccontextmanager
async def two_workers() -> AsyncIterator[tuple[str, list[ServiceProcess]]]:
    """A router over two workers: its address, and the workers."""
    async with started("cloud", {"THREADS": 1}) as first, started("cloud", {"THREADS": 1}) as second:
        addresses = [worker.addresses["listening"] for worker in (first, second)]
        async with started("router", {"WORKERS": addresses}) as router:
            yield router.addresses["listening"], [first, second]


async def kill_one(answers: int = 20, max_tokens: int = 96) -> Outcome:
    """Half of the answers greedy, half at temperature 0.8, all at once; SIGKILL as soon as every one has begun."""
    prompts = heldout("code")[:answers]
    async with two_workers() as (address, workers), AsyncClient(address, api_key=DEMO_KEY) as client:
        calm = [await _answer(client, i, prompt, max_tokens) for i, prompt in enumerate(prompts)]
        begun = [asyncio.Event() for _ in prompts]
        tasks = [
            asyncio.create_task(_answer(client, i, prompt, max_tokens, event))
            for i, (prompt, event) in enumerate(zip(prompts, begun, strict=True))
        ]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 60)
        in_flight = sum(not task.done() for task in tasks)
        moved = await asyncio.to_thread(_running, workers[0])
        os.kill(workers[0].pid, signal.SIGKILL)
        stormy = await asyncio.wait_for(asyncio.gather(*tasks), 120)
    different = sum((a.token_ids, a.text) != (b.token_ids, b.text) for a, b in zip(calm, stormy, strict=True))
    return Outcome(answers, in_flight, moved, different)


async def _answer(
    client: AsyncClient, number: int, prompt: str, max_tokens: int, begun: asyncio.Event | None = None
) -> Answer:
    gatherer = Gatherer()
    stream = client.stream(
        prompt, max_tokens=max_tokens, temperature=0.8 if number % 2 else 0.0, seed=number, cache="bypass"
    )
    async for event in stream:
        if begun and isinstance(event, Tokens):
            begun.set()
        if answer := gatherer.add(event):
            return answer
    raise AssertionError("a stream ends with Finished or an error")


def _running(worker: ServiceProcess) -> int:
    """Sequences that a worker runs now, as its metrics tell."""
    (status,) = read_all([worker.addresses["metrics"]])
    return int(sum(sample.value for sample in status.samples if sample.name == "tiermesh_cloud_running"))


def main(arguments: Sequence[str]) -> None:
    """`failover [--rounds 5] [--force]`; writes failover.json."""
    parser = argparse.ArgumentParser(prog="failover")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--force", action="store_true", help="run on a tree that was not tested")
    options = parser.parse_args(arguments)
    green = require_green(options.force)
    outcomes = [asyncio.run(kill_one(options.answers)) for _ in range(options.rounds)]
    for outcome in outcomes:
        print(
            f"{outcome.answers} answers, {outcome.in_flight} in flight, {outcome.moved} on the killed worker: "
            f"{outcome.different} differ from the undisturbed run"
        )
    write_result("failover", {"rounds": [asdict(outcome) for outcome in outcomes]}, green=green)

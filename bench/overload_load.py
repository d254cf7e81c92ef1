"""An open loop of several tenants against one router, and what the refused can say about the delay they were told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from .. import AsyncClient
from ..common.errors import Overloaded, TiermeshError
from ..common.types import Event, Finished, Started, Tokens
from ..retry import Retry

RUNGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
"""When a refused request asks again, in parts of the delay that it was told."""
FINISHED = ("stop", "length")
"""How a request ends whose answer is whole."""
_ONCE = Retry(attempts=1)


@dataclass(frozen=True, slots=True)
class Flow:
    """One tenant's requests."""

    tenant: str
    tier: str
    key: str
    per_s: float


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked."""

    prompt: str
    max_tokens: int
    seed: int


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in seconds."""

    tenant: str
    tier: str
    due_s: float
    """Since the start of the run."""
    admitted: bool = False
    ttft_s: float | None = None
    tokens: int = 0
    ended: str = ""
    """A finish reason, or an error's."""
    retry_after_s: float | None = None
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by hop and stage, of a finished one."""


@dataclass(slots=True)
class Asked:
    """All of a run."""

    outcomes: list[Outcome] = field(default_factory=list)
    retried: list[Outcome] = field(default_factory=list)
    """Of requests that asked again after the delay they were told: what became of that."""
    ladders: list[tuple[float, float | None]] = field(default_factory=list)
    """For requests that asked again at each rung: the delay they were told, and the first that worked, if one did."""


class Load:
    """Asks, and remembers."""

    def __init__(self, address: str, flows: Sequence[Flow], prompts: Sequence[str], seed: int) -> None:
        self.flows = flows
        self.asked = Asked()
        self._clients = {flow.tenant: AsyncClient(address, api_key=flow.key, retry=_ONCE) for flow in flows}
        self._prompts = prompts
        self._draw = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends = 0.0

    async def close(self) -> None:
        """Ends all connections."""
        for client in self._clients.values():
            await client.close()

    async def closed(self, at_once: int, seconds: float) -> float:
        """Requests/s that were finished in a closed loop in which so many ask, each time for a tenant by chance."""
        ends, finished = time.perf_counter() + seconds, 0
        begun = time.perf_counter()

        async def one() -> None:
            nonlocal finished
            while time.perf_counter() < ends:
                flow = self._flow()
                outcome = Outcome(flow.tenant, flow.tier, 0.0)
                await self._ask(flow, self._wish(), outcome)
                finished += outcome.ended in FINISHED

        await asyncio.gather(*(one() for _ in range(at_once)))
        return finished / (time.perf_counter() - begun)

    async def alone(self, flow: Flow, count: int) -> list[float]:
        """Seconds to the first token of answers of one token, one after the other."""
        first_s = []
        for _ in range(count):
            outcome = Outcome(flow.tenant, flow.tier, 0.0)
            await self._ask(flow, replace(self._wish(), max_tokens=1), outcome)
            if outcome.ttft_s is not None:
                first_s.append(outcome.ttft_s)
        return first_s

    async def open(self, seconds: float, retries: float, ladders: float) -> Asked:
        """Poisson arrivals of all flows for so long, then until the last has ended.

        Of the refused ones a share `retries` asks again once, after the delay that it was told, and goes on like any
        other when it is admitted; a share `ladders` asks at each rung until it is admitted, and then lets go at once.
        What would be asked after the last arrival says nothing, and is left out.
        """
        total = sum(flow.per_s for flow in self.flows)
        begun = due = time.perf_counter()
        self._ends = begun + seconds
        while due < self._ends:
            due += self._draw.expovariate(total)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            flow = self._flow()
            fate = self._draw.random()
            then = "retry" if fate < retries else "ladder" if fate < retries + ladders else ""
            outcome = Outcome(flow.tenant, flow.tier, due - begun)
            self.asked.outcomes.append(outcome)
            task = asyncio.create_task(self._one(flow, outcome, due, then))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)
        return self.asked

    async def _one(self, flow: Flow, outcome: Outcome, due: float, then: str) -> None:
        wish = self._wish()
        await self._ask(flow, wish, outcome, due)
        if outcome.admitted or outcome.ended != Overloaded.reason or outcome.retry_after_s is None:
            return
        refused, told_s = time.perf_counter(), outcome.retry_after_s
        if then == "retry" and refused + told_s < self._ends:
            await asyncio.sleep(told_s)
            again = Outcome(flow.tenant, flow.tier, outcome.due_s)
            await self._ask(flow, wish, again)
            self.asked.retried.append(again)
        elif then == "ladder":
            for rung in RUNGS:
                if refused + rung * told_s > self._ends:
                    return
                await asyncio.sleep(max(0.0, refused + rung * told_s - time.perf_counter()))
                if await self._would_be_admitted(flow, wish):
                    self.asked.ladders.append((told_s, time.perf_counter() - refused))
                    return
            self.asked.ladders.append((told_s, None))

    def _flow(self) -> Flow:
        return self._draw.choices(self.flows, [flow.per_s for flow in self.flows])[0]

    def _wish(self) -> Wish:
        """A prompt, and a length from a lognormal distribution: the median of 32 tokens, a tenth above 90."""
        length = max(4, min(200, round(32 * self._draw.lognormvariate(0.0, 0.8))))
        return Wish(self._draw.choice(self._prompts), length, self._draw.getrandbits(32))

    async def _ask(self, flow: Flow, wish: Wish, outcome: Outcome, due: float | None = None) -> None:
        began = time.perf_counter() if due is None else due
        try:
            async with aclosing(self._stream(flow, wish)) as events:
                async for event in events:
                    if isinstance(event, Started):
                        outcome.admitted = True
                    elif isinstance(event, Tokens):
                        if outcome.ttft_s is None:
                            outcome.ttft_s = time.perf_counter() - began
                        outcome.tokens += len(event.ids)
                    elif isinstance(event, Finished):
                        if outcome.ttft_s is None:  # an empty answer
                            outcome.ttft_s = time.perf_counter() - began
                        outcome.ended = event.reason.value
                        outcome.timings = {f"{one.hop} {one.stage}": one.duration_s for one in event.timings}
        except TiermeshError as error:
            outcome.ended, outcome.retry_after_s = error.reason, error.retry_after_s

    async def _would_be_admitted(self, flow: Flow, wish: Wish) -> bool:
        try:
            async with aclosing(self._stream(flow, wish)) as events:
                async for _ in events:
                    return True
        except TiermeshError:
            pass
        return False

    def _stream(self, flow: Flow, wish: Wish) -> AsyncGenerator[Event, None]:
        client = self._clients[flow.tenant]
        return client.stream(
            wish.prompt, max_tokens=wish.max_tokens, seed=wish.seed, temperature=1.0, cache="bypass", tier=flow.tier
        )

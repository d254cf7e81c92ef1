"""A synthetic day of requests, and its replay: who asks again what was asked, when, and what that costs."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .. import AsyncClient
from ..common.config import DEMO_KEY
from ..common.types import CacheControl

_NIGHT = 0.2
"""Rate at 4 in the morning, of the day's mean; at 16 it is 2 less that."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the day."""

    at: float
    """Share of the day, 0 to 1."""
    prompt: int
    """By rank: 0 is asked most."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a day."""

    latencies_s: tuple[float, ...]
    cached: int
    billed: int
    """Tokens."""
    texts: tuple[str, ...]


def synthetic_day(calls: int, prompts: int, exponent: float, seed: int) -> tuple[Call, ...]:
    """Prompts by Zipf's law, rank r with weight r^-exponent; times by a rate that swings like a cosine over the day."""
    draw = random.Random(seed)
    weights = [(rank + 1) ** -exponent for rank in range(prompts)]
    asked = draw.choices(range(prompts), weights, k=calls)
    times: list[float] = []
    while len(times) < calls:
        at = draw.random()
        if draw.random() * (2 - _NIGHT) < 1 - (1 - _NIGHT) * math.cos(2 * math.pi * (at - 4 / 24)):
            times.append(at)
    return tuple(Call(at, prompt) for at, prompt in zip(sorted(times), asked, strict=True))


def repeats(day: Sequence[Call], lasts: float) -> int:
    """Calls that a cache could serve which forgets an answer after `lasts` of the day: what can be hit at most."""
    kept_until: dict[int, float] = {}
    found = 0
    for call in day:
        if call.at < kept_until.get(call.prompt, -1.0):
            found += 1
        else:
            kept_until[call.prompt] = call.at + lasts
    return found


async def replay(
    address: str, day: Sequence[Call], texts: Sequence[str], day_s: float, max_tokens: int, cache: CacheControl
) -> Replayed:
    """All calls at their times, in a day of `day_s` seconds, whether or not those before are answered."""
    async with AsyncClient(address, api_key=DEMO_KEY) as client:
        await client.models()
        began = time.perf_counter()

        async def ask(call: Call) -> tuple[float, bool, int, str]:
            due = began + call.at * day_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            answer = await client.generate(texts[call.prompt], max_tokens=max_tokens, cache=cache, tier="batch")
            # From the time at which it was due: a late start is the asked one's fault too.
            return time.perf_counter() - due, answer.usage.cached, answer.usage.billed_tokens, answer.text

        answers = await asyncio.gather(*(ask(call) for call in day))
    latencies, cached, billed, said = zip(*answers, strict=True)
    return Replayed(latencies, sum(cached), sum(billed), said)

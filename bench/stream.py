"""What the router costs: tokens/s of 16 streams through router and worker beside the worker alone."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import AsyncClient
from ..common.config import DEMO_KEY
from .kit import PairedRatio, paired_ratio
from .processes import started
from .prompts import heldout
from .results import plot_bars, require_green, write_result


@dataclass(frozen=True, slots=True)
class Streamed:
    """Figures of one benchmark."""

    ratio: PairedRatio
    """Tokens/s through the router against the worker alone."""
    router_us_per_token: float
    """CPU time of the router process, in microseconds."""


def measure(streams: int, tokens: int, pairs: int) -> Streamed:
    """Runs both ways in turn on one worker with one thread."""
    with asyncio.Runner() as runner:
        return runner.run(_measure(streams, tokens, pairs))


async def _measure(streams: int, tokens: int, pairs: int) -> Streamed:
    async with started("cloud", {"THREADS": 1}) as worker:
        alone = worker.addresses["listening"]
        async with started("router", {"WORKERS": [alone]}) as router:
            spent: list[float] = []
            routed = router.addresses["listening"]

            async def through() -> float:
                before = cpu_s(router.pid)
                count, rate = await _run(routed, streams, tokens)
                spent.append((cpu_s(router.pid) - before) / count)
                return rate

            async def past() -> float:
                _, rate = await _run(alone, streams, tokens)
                return rate

            loop = asyncio.get_running_loop()

            def blocking(work: Callable[[], Coroutine[None, None, float]]) -> Callable[[], float]:
                return lambda: asyncio.run_coroutine_threadsafe(work(), loop).result()

            ratio = await asyncio.to_thread(paired_ratio, blocking(through), blocking(past), pairs=pairs)
            return Streamed(ratio, 1e6 * sum(spent[1:]) / len(spent[1:]))


async def _run(address: str, streams: int, tokens: int) -> tuple[int, float]:
    """Tokens, and tokens/s, of all streams at once; the same seeds give the same lengths on both ways."""
    prompts = heldout("code")[:streams]
    async with AsyncClient(address, api_key=DEMO_KEY) as client:
        began = time.perf_counter()
        counts = await asyncio.gather(*(_count(client, i, prompt, tokens) for i, prompt in enumerate(prompts)))
        return sum(counts), sum(counts) / (time.perf_counter() - began)


async def _count(client: AsyncClient, seed: int, prompt: str, tokens: int) -> int:
    answer = await client.generate(prompt, max_tokens=tokens, temperature=1.0, seed=seed, cache="bypass", tier="batch")
    return len(answer.token_ids)


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str]) -> None:
    """`stream [--streams 16] [--tokens 128] [--pairs 5] [--force]`; writes stream.json and stream.png."""
    parser = argparse.ArgumentParser(prog="stream")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--force", action="store_true", help="run on a tree that was not tested")
    options = parser.parse_args(arguments)
    green = require_green(options.force)
    result = measure(options.streams, options.tokens, options.pairs)
    print(f"router + worker against worker alone, {options.streams} streams: {result.ratio}")
    print(f"router: {result.router_us_per_token:.0f} µs CPU per token")
    figures = {
        "streams": options.streams,
        "tokens": options.tokens,
        "tokens_per_s": result.ratio.facts(),
        "router_us_per_token": result.router_us_per_token,
    }
    write_result("stream", figures, green=green)
    sums = {"worker alone": result.ratio.theirs, "router + worker": result.ratio.ours}
    bars = {name: sorted(rates)[len(rates) // 2] for name, rates in sums.items()}
    plot_bars("stream", f"{options.streams} streams of {options.tokens} tokens", "tokens/s", bars)

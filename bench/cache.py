"""The result cache: a hit through the router, what a miss costs, bytes per entry, and a day's requests beside none."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import redis.asyncio

from .. import AsyncClient
from ..common.admin_stub import cache_stats
from ..common.config import DEMO_KEY
from ..common.config_schema import MEMORY_URL
from ..common.types import CacheControl
from ..models import starter
from ..training.heldout import command_prompts
from .cache_day import Call, Replayed, repeats, replay, synthetic_day
from .cache_mesh import prompt_worker, redis_server, router
from .kit import percentile, percentiles
from .processes import started
from .results import plot_bars, require_green, write_result

_TOKENS = 32
"""Of every answer that is asked for here."""
_SEED = 8128
_ROUNDS = 7
_WARM_UPS = 50
_LASTS = 0.25
"""Of the replayed day, for which an answer is kept: six hours."""


def main(arguments: Sequence[str]) -> None:
    """Starts what is compared, measures in turn, prints and writes the figures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench cache", description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="hits per store and round, and half as many misses")
    parser.add_argument("--day-s", type=float, default=60.0, help="how long the replayed day takes")
    parser.add_argument("--day-calls", type=int, default=400)
    parser.add_argument("--day-prompts", type=int, default=300, help="different ones, by Zipf's law")
    parser.add_argument("--exponent", type=float, default=1.0, help="of that law")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    day = synthetic_day(given.day_calls, given.day_prompts, given.exponent, _SEED)
    figures = asyncio.run(_one_hop(given.calls)) | {
        "day": {"calls": given.day_calls, "prompts": given.day_prompts, "exponent": given.exponent}
        | {"day_s": given.day_s, "could_hit": repeats(day, _LASTS) / len(day)}
        | asyncio.run(_day(day, given.day_prompts, given.day_s))
    }
    print(_table(figures))
    print(write_result("cache", figures, green=green))
    bars = {f"{way}, {p}": row[p] for way, row in figures["day"]["ways"].items() for p in ("p50", "p95")}
    plot_bars("cache", "A synthetic day through the router", "milliseconds to the whole answer", bars)


async def _one_hop(calls: int) -> dict[str, Any]:
    """Hits and misses one at a time, on both stores in turn; the worker answers at once, so that its noise is none."""
    async with AsyncExitStack() as stack:
        worker, url = await stack.enter_async_context(prompt_worker()), await stack.enter_async_context(redis_server())
        stores = {"memory": MEMORY_URL, "redis": url}
        addresses = {name: await stack.enter_async_context(router(worker, kept)) for name, kept in stores.items()}
        clients = {
            name: await stack.enter_async_context(AsyncClient(address, api_key=DEMO_KEY))
            for name, address in addresses.items()
        }
        for client in clients.values():
            await _timed(client, [f"warm {i}" for i in range(_WARM_UPS)] + ["again"] * _WARM_UPS, CacheControl.USE)
        hits: dict[str, list[float]] = {name: [] for name in stores}
        misses: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
        for number in range(_ROUNDS):
            for name, client in clients.items():
                hits[name] += await _timed(client, ["again"] * calls, CacheControl.USE)
                misses[name].append(await _miss(client, number, calls // 2))
        return {
            "hit_ms": {name: _ms(times) for name, times in hits.items()},
            "miss_cost_ms": {name: _cost(rounds) for name, rounds in misses.items()},
            "bytes_per_entry": {name: await _bytes(address) for name, address in addresses.items()}
            | {"redis_memory": await _bytes_of_redis(clients["redis"], addresses["redis"], url)},
            "tokens_per_entry": _TOKENS,
        }


async def _timed(client: AsyncClient, prompts: Sequence[str], cache: CacheControl) -> list[float]:
    """Seconds of each answer, one after the other, through the SDK."""
    times = []
    for prompt in prompts:
        began = time.perf_counter()
        await client.generate(prompt, max_tokens=_TOKENS, cache=cache)
        times.append(time.perf_counter() - began)
    return times


async def _miss(client: AsyncClient, number: int, pairs: int) -> tuple[float, float]:
    """Median seconds of new prompts, looked up and kept, and of others that pass the cache by; in turn."""
    with_cache: list[float] = []
    without: list[float] = []
    for pair in range(pairs):
        ways = [(with_cache, CacheControl.USE), (without, CacheControl.BYPASS)]
        for times, cache in ways if pair % 2 else ways[::-1]:
            times += await _timed(client, [f"new {number} {pair} {cache.value}"], cache)
    return statistics.median(with_cache), statistics.median(without)


def _cost(rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    costs = [1000 * (with_cache - without) for with_cache, without in rounds]
    return {"median": statistics.median(costs), "spread": [min(costs), max(costs)], "rounds": costs} | {
        "without_ms": 1000 * statistics.median(without for _, without in rounds)
    }


async def _bytes(address: str) -> float:
    """What the store counts for an entry."""
    held = (await cache_stats(address, "")).tenants["demo"]
    return held.bytes / held.entries


async def _bytes_of_redis(client: AsyncClient, address: str, url: str, entries: int = 2000) -> float:
    """What Redis needs for an entry, its names, books and overhead included."""
    async with redis.asyncio.Redis.from_url(url) as server:
        before, held = await server.info("memory"), (await cache_stats(address, "")).tenants["demo"]
        await _timed(client, [f"more {i}" for i in range(entries)], CacheControl.USE)
        after, more = await server.info("memory"), (await cache_stats(address, "")).tenants["demo"]
    used = after["used_memory_dataset"] - before["used_memory_dataset"]
    return float(used / (more.entries - held.entries))


async def _day(day: Sequence[Call], prompts: int, day_s: float) -> dict[str, Any]:
    """The day replayed on each store and on none, before the starter pair's worker; the texts must be the same."""
    texts = [prompt.prompt for prompt in command_prompts(prompts, _SEED)]
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(started("cloud", {"THREADS": 1, "MODEL": str(starter() / "cloud")}))
        worker, url = service.addresses["listening"], await stack.enter_async_context(redis_server())
        replays = {}
        for name, kept in (("none", MEMORY_URL), ("memory", MEMORY_URL), ("redis", url)):
            address = await stack.enter_async_context(router(worker, kept, ttl_s=_LASTS * day_s))
            cache = CacheControl.BYPASS if name == "none" else CacheControl.USE
            replays[name] = await replay(address, day, texts, day_s, _TOKENS, cache)
    said = replays["none"].texts
    return {
        "ways": {name: _of_day(replayed, len(day)) for name, replayed in replays.items()},
        "different_texts": {
            name: sum(a != b for a, b in zip(replayed.texts, said, strict=True)) for name, replayed in replays.items()
        },
    }


def _of_day(replayed: Replayed, calls: int) -> dict[str, float]:
    """All of the day counts, so nothing is trimmed."""
    ms = {f"p{p}": 1000 * percentile(replayed.latencies_s, p / 100) for p in (50, 95, 99)}
    mean = 1000 * statistics.fmean(replayed.latencies_s)
    return {"hit_rate": replayed.cached / calls, "mean": mean, "billed_tokens": replayed.billed} | ms


def _ms(seconds: Sequence[float]) -> dict[str, float]:
    return {name: value if name == "count" else 1000 * value for name, value in percentiles(seconds).items()}


def _table(figures: dict[str, Any]) -> str:
    lines = [
        f"hit, {name}: p50 {ms['p50']:.2f} ms, p95 {ms['p95']:.2f} ms, p99 {ms['p99']:.2f} ms"
        for name, ms in figures["hit_ms"].items()
    ]
    lines += [
        f"a miss costs, {name}: {cost['median']:.3f} ms ({cost['spread'][0]:.3f} to {cost['spread'][1]:.3f}) "
        f"beside {cost['without_ms']:.2f} ms without"
        for name, cost in figures["miss_cost_ms"].items()
    ]
    sizes = ", ".join(f"{name} {size:.0f}" for name, size in figures["bytes_per_entry"].items())
    lines.append(f"bytes per entry of {figures['tokens_per_entry']} tokens: {sizes}")
    day = figures["day"]
    lines.append(f"a day of {day['calls']} calls in {day['day_s']:.0f} s; {day['could_hit']:.1%} could be hits")
    lines += [
        f"  {name:<8} hits {row['hit_rate']:6.1%}  mean {row['mean']:7.1f} ms  p50 {row['p50']:7.1f}  "
        f"p95 {row['p95']:7.1f}  billed {row['billed_tokens']:.0f} tokens, {day['different_texts'][name]} texts differ"
        for name, row in day["ways"].items()
    ]
    return "\n".join(lines)

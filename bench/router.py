"""What the router adds: TTFT, requests/s and tokens/s beside a logic-free proxy and LiteLLM, memory per stream."""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from ..common.config_schema import MEMORY_URL
from .cache_mesh import router_process
from .kit import percentile, trimmed
from .processes import hop
from .results import plot_bars, require_green, write_result
from .router_load import Client, closed_loop, open_loop
from .router_peer import beside_litellm

_AT_ONCE = 32
_STREAMS = 16
_STREAM_TOKENS = 256
_ROUNDS = 7
_WARM_UPS = 400
_TENTHS = 10


def main(arguments: Sequence[str]) -> None:
    """Starts worker, router and proxy as processes, measures in turn, prints and writes the figures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench router", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="in the long run that shall stay flat")
    parser.add_argument("--round-requests", type=int, default=2_000, help="per way and round, for rates")
    parser.add_argument("--round-s", type=float, default=3.0, help="per way and round, at half load")
    parser.add_argument("--idle", type=int, default=1_000, help="streams that are open and wait")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where LiteLLM is, or shall be, installed")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    figures = uvloop.run(_measure(given))
    if given.peers is not None:
        figures["litellm"] = beside_litellm(given.peers, figures)
    print(_table(figures))
    write_result("router", figures, green=green)
    bars = {f"{way}, {what}": row[what] for way, row in figures["ways"].items() for what in ("ttft_p50_ms",)}
    plot_bars("router", "Time to the first token at half load, median", "milliseconds", bars)


async def _measure(given: argparse.Namespace) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(hop("worker"))
        direct = worker.addresses["listening"]
        proxy = await stack.enter_async_context(hop("proxy", direct))
        router = await stack.enter_async_context(router_process(direct, MEMORY_URL))
        addresses = {"direct": direct, "proxy": proxy.addresses["listening"], "router": router.addresses["listening"]}
        clients = {way: await stack.enter_async_context(Client(at)) for way, at in addresses.items()}
        for client in clients.values():
            await closed_loop(client, _AT_ONCE, _WARM_UPS, 1)
        requests = await _rates(clients, given.round_requests, 1, _AT_ONCE)
        tokens = await _rates(clients, 2 * _STREAMS, _STREAM_TOKENS, _STREAMS)
        half = statistics.median(requests["router"]) / 2
        alone_s = {way: await _one_by_one(client) for way, client in clients.items()}
        first_s = await _at_half_load(clients, half, given.round_s)
        idle = await _idle_bytes(clients["router"], router.pid, given.idle)
        return {
            "ways": {
                way: {
                    "requests_per_s": statistics.median(requests[way]),
                    "tokens_per_s": _STREAM_TOKENS * statistics.median(tokens[way]),
                    "ttft_p50_ms": 1000 * percentile(first_s[way], 0.5),
                    "ttft_p99_ms": 1000 * percentile(first_s[way], 0.99),
                    "alone_p50_ms": 1000 * percentile(alone_s[way], 0.5),
                }
                for way in clients
            },
            "half_load_per_s": half,
            "of_proxy": {
                "requests_per_s": _ratio(requests),
                "tokens_per_s": _ratio(tokens),
            },
            "idle_stream_bytes": idle,
            "long_run": await _long_run(clients["router"], router.pid, given.requests),
        }


async def _rates(clients: dict[str, Client], requests: int, tokens: int, at_once: int) -> dict[str, list[float]]:
    """Requests/s of each way and round, in turn; who goes first changes."""
    rates: dict[str, list[float]] = {way: [] for way in clients}
    for number in range(_ROUNDS):
        ways = list(clients)
        for way in ways if number % 2 else ways[::-1]:
            _, took_s = await closed_loop(clients[way], at_once, requests, tokens)
            rates[way].append(requests / took_s)
    return rates


async def _one_by_one(client: Client, requests: int = 500) -> list[float]:
    """Seconds of whole answers of one token, one after the other."""
    answers, _ = await closed_loop(client, 1, requests, 1)
    return trimmed([answer.total_s for answer in answers])


async def _at_half_load(clients: dict[str, Client], per_s: float, round_s: float) -> dict[str, list[float]]:
    """Seconds to the first token, Poisson arrivals at the same moments on each way, in turn."""
    first_s: dict[str, list[float]] = {way: [] for way in clients}
    for number in range(_ROUNDS):
        draw = random.Random(number)
        offsets = [0.0]
        while offsets[-1] < round_s:
            offsets.append(offsets[-1] + draw.expovariate(per_s))
        ways = list(clients)
        for way in ways if number % 2 else ways[::-1]:
            answers = await open_loop(clients[way], offsets, 1)
            first_s[way] += trimmed([answer.first_s for answer in answers])
    return first_s


def _ratio(rates: dict[str, list[float]]) -> dict[str, Any]:
    """The router's of the proxy's, round by round."""
    ratios = [ours / theirs for ours, theirs in zip(rates["router"], rates["proxy"], strict=True)]
    return {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}


async def _idle_bytes(client: Client, pid: int, streams: int) -> dict[str, float]:
    """What the router's resident memory grows by, per stream that is open and silent; half of them warm it up."""
    calls = [await client.idle() for _ in range(streams // 2)]
    before = rss_bytes(pid)
    calls += [await client.idle() for _ in range(streams)]
    after = rss_bytes(pid)
    for call in calls:
        call.cancel()
    return {"streams": streams, "bytes": (after - before) / streams}


async def _long_run(client: Client, pid: int, requests: int) -> dict[str, Any]:
    """Memory and latency after each tenth of many requests."""
    rss, p50 = [], []
    for _ in range(_TENTHS):
        answers, _ = await closed_loop(client, _AT_ONCE, requests // _TENTHS, 1)
        rss.append(rss_bytes(pid))
        p50.append(1000 * percentile([answer.total_s for answer in answers], 0.5))
    return {"requests": requests, "rss_bytes": rss, "p50_ms": p50}


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def _table(figures: dict[str, Any]) -> str:
    ways = figures["ways"]
    lines = [
        f"{way:<7} {row['requests_per_s']:7.0f} requests/s  {row['tokens_per_s']:7.0f} tokens/s  TTFT p50 "
        f"{row['ttft_p50_ms']:.2f} ms, p99 {row['ttft_p99_ms']:.2f} ms  one by one {row['alone_p50_ms']:.2f} ms"
        for way, row in ways.items()
    ]
    for p in ("p50", "p99"):
        added = ways["router"][f"ttft_{p}_ms"] - ways["direct"][f"ttft_{p}_ms"]
        lines.append(f"added to TTFT at half load ({figures['half_load_per_s']:.0f} requests/s), {p}: {added:.2f} ms")
    for what, ratio in figures["of_proxy"].items():
        low, high = ratio["spread"]
        lines.append(f"{what}, of the logic-free proxy's: {ratio['ratio']:.2f} ({low:.2f} to {high:.2f})")
    idle, run = figures["idle_stream_bytes"], figures["long_run"]
    lines.append(f"an idle stream: {idle['bytes'] / 1024:.1f} KiB ({idle['streams']} of them)")
    rss, p50 = run["rss_bytes"], run["p50_ms"]
    lines.append(
        f"over {run['requests']} requests, second tenth to last: {(rss[-1] - rss[1]) / 1024:+.0f} KiB resident, "
        f"p50 {p50[1]:.2f} to {p50[-1]:.2f} ms"
    )
    if (peer := figures.get("litellm")) is None:
        lines.append("beside LiteLLM: not run; --peers DIR runs it")
    else:
        lines += peer["lines"] if "lines" in peer else [f"beside LiteLLM: not run, {peer['why_not']}"]
    return "\n".join(lines)

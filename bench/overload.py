"""Twice what a mesh can do, in an open loop: three tiers, a flooding tenant, and what the refused are told."""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..common.keys import key_hash, new_key
from .kit import percentile
from .overload_load import FINISHED, Asked, Flow, Load, Outcome
from .processes import configured_router, started
from .prompts import heldout
from .results import plot_lines, require_green, write_result

_SEED = 271828
TIERS = {
    "realtime": {"ttft_ms": 500, "deadline_ms": 5_000, "min_share": 0.20},
    "standard": {"ttft_ms": 2_000, "deadline_ms": 5_000, "min_share": 0.10},
    "batch": {"ttft_ms": 10_000, "deadline_ms": 15_000, "min_share": 0.05},
}
"""Budgets of the simulation (`bench/sim_workload.py`), with deadlines that a run of a minute reaches."""
SHARES = {
    ("voice", "realtime"): 0.2,
    ("app", "standard"): 0.1,
    ("web", "standard"): 0.1,
    ("flood", "standard"): 0.4,
    ("night", "batch"): 0.2,
}
"""Of all arrivals. At twice the capacity `flood` alone would nearly fill the mesh."""
_METER_S = 20.0
"""Seconds that the capacity is measured, after half as many in which the worker comes to know the prompts."""
_IDLE = 50
"""Requests that tell what the first token takes when nobody else asks."""
_RETRIES, _LADDERS = 0.3, 0.1
_NO_LIMIT = 10**9


def main(arguments: Sequence[str]) -> None:
    """Starts worker and router as processes, measures the capacity, overloads them, prints and writes the figures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long requests arrive")
    parser.add_argument("--load", type=float, default=2.0, help="arrivals, in parts of the measured capacity")
    parser.add_argument("--slots", type=int, default=8, help="sequences that the worker runs at once")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    capacity, idle_s, asked = asyncio.run(_run(given.seconds, given.load, given.slots))
    figures = {
        "load": given.load,
        "seconds": given.seconds,
        "slots": given.slots,
        "capacity_per_s": capacity,
        "idle_ttft_ms": {f"p{p}": 1000 * percentile(idle_s, p / 100) for p in (50, 98)},
        "tiers": TIERS,
    } | _of(asked)
    print(_table(figures))
    write_result("overload", figures, green=green)
    lines = {tier: _shares_by_time([o for o in asked.outcomes if o.tier == tier], s) for tier, s in _axis().items()}
    plot_lines("overload", f"First token at {given.load:g} times the capacity", _AXES, lines)


_AXES = ("part of the tier's TTFT budget", "share of the offered requests that have their first token")


async def _run(seconds: float, load: float, slots: int) -> tuple[float, list[float], Asked]:
    """The capacity in requests/s, seconds to the first token on the idle mesh, and what came of the overload."""
    keys = {tenant: new_key() for tenant, _ in SHARES}
    limits = {"requests_per_minute": _NO_LIMIT, "tokens_per_minute": _NO_LIMIT, "concurrent": 256, "queued": 256}
    async with started("cloud", {"THREADS": 1, "SLOTS": slots}) as worker:
        tenants = {
            name: {"api_keys": [key_hash(key)], "tiers": list(TIERS), "limits": limits} for name, key in keys.items()
        }
        router = {"workers": [worker.addresses["listening"]]}
        async with configured_router({"tiers": TIERS, "tenants": tenants, "router": router}) as process:
            address, prompts = process.addresses["listening"], heldout("code")
            flows = [Flow(tenant, tier, keys[tenant], share) for (tenant, tier), share in SHARES.items()]
            measuring = Load(address, flows, prompts, _SEED)
            await measuring.closed(slots + 1, _METER_S / 2)
            capacity = await measuring.closed(slots + 1, _METER_S)
            idle_s = await measuring.alone(flows[0], _IDLE)
            await measuring.close()
            flows = [replace(flow, per_s=load * capacity * flow.per_s) for flow in flows]
            overloading = Load(address, flows, prompts, _SEED + 1)
            try:
                return capacity, idle_s, await overloading.open(seconds, _RETRIES, _LADDERS)
            finally:
                await overloading.close()


def _of(asked: Asked) -> dict[str, Any]:
    """Shares are of the offered requests: a refusal is a miss, whatever comes of asking again."""
    admitted = [outcome for outcome in (*asked.outcomes, *asked.retried) if outcome.admitted]
    return {
        "tenants": {
            tenant: _of_tenant([outcome for outcome in asked.outcomes if outcome.tenant == tenant], tier)
            for tenant, tier in SHARES
        },
        "admitted": dict(Counter(outcome.ended for outcome in admitted)),
        "lost": _of_lost(admitted),
        "not_admitted": dict(Counter(outcome.ended for outcome in asked.outcomes if not outcome.admitted)),
        "retries": _of_retries(asked.retried),
        "ladders": _of_ladders(asked.ladders),
    }


def _of_tenant(outcomes: Sequence[Outcome], tier: str) -> dict[str, Any]:
    budget_s = TIERS[tier]["ttft_ms"] / 1000
    first_s = [outcome.ttft_s for outcome in outcomes if outcome.ttft_s is not None]
    finished = [outcome for outcome in outcomes if outcome.ended in FINISHED]
    return {
        "tier": tier,
        "offered": len(outcomes),
        "finished": len(finished),
        "tokens": sum(outcome.tokens for outcome in finished),
        "refused": sum(not outcome.admitted for outcome in outcomes),
        "ttft_attained": sum(value <= budget_s for value in first_s) / max(1, len(outcomes)),
        "ttft_ms": {f"p{p}": 1000 * percentile(first_s, p / 100) for p in (50, 95, 99)} if first_s else {},
        "median_ms": {
            stage: 1000 * statistics.median(outcome.timings.get(stage, 0.0) for outcome in finished)
            for stage in dict.fromkeys(name for outcome in finished for name in outcome.timings)
        },
    }


def _of_lost(admitted: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Of the admitted ones that were not finished, by tier, and whether they had their first token."""
    lost = [outcome for outcome in admitted if outcome.ended not in FINISHED]
    return {
        "before_first_token": dict(Counter(outcome.tier for outcome in lost if outcome.ttft_s is None)),
        "after_it": dict(Counter(outcome.tier for outcome in lost if outcome.ttft_s is not None)),
    }


def _of_retries(retried: Sequence[Outcome]) -> dict[str, Any]:
    admitted = [outcome.admitted for outcome in retried]
    return {"count": len(admitted), "admitted": statistics.fmean(admitted) if admitted else None}


def _of_ladders(ladders: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
    """Medians of the delay that was told, of the shortest that worked, and of how many times that it is, over those
    for which one did."""
    worked = [(told, shortest) for told, shortest in ladders if shortest is not None]
    if not worked:
        return {"count": len(ladders), "worked": 0}
    told_s, shortest_s = (statistics.median(column) for column in zip(*worked, strict=True))
    return {
        "count": len(ladders),
        "worked": len(worked),
        "told_s": told_s,
        "shortest_s": shortest_s,
        "told_of_shortest": told_s / shortest_s,
        "median_of_ratios": statistics.median(told / shortest for told, shortest in worked),
    }


def _axis() -> dict[str, float]:
    return {tier: rule["ttft_ms"] / 1000 for tier, rule in TIERS.items()}


def _shares_by_time(outcomes: Sequence[Outcome], budget_s: float) -> tuple[list[float], list[float]]:
    """Parts of the budget, and the share of all that had their first token by then."""
    parts = [step / 10 for step in range(31)]
    first_s = [outcome.ttft_s for outcome in outcomes if outcome.ttft_s is not None]
    return parts, [sum(value <= part * budget_s for value in first_s) / max(1, len(outcomes)) for part in parts]


def _table(figures: dict[str, Any]) -> str:
    idle = figures["idle_ttft_ms"]
    lines = [
        f"capacity {figures['capacity_per_s']:.1f} requests/s; {figures['load']:g} times that arrived; idle TTFT p50 "
        f"{idle['p50']:.0f} ms, p98 {idle['p98']:.0f} ms"
    ]
    for tenant, row in figures["tenants"].items():
        ttft = "  ".join(f"{p} {ms:.0f} ms" for p, ms in row["ttft_ms"].items())
        lines.append(
            f"{tenant:<6} {row['tier']:<8} offered {row['offered']:5}  refused {row['refused']:5}  finished "
            f"{row['finished']:5}  TTFT in its budget {row['ttft_attained']:6.1%} of offered  {ttft}"
        )
    where = {stage: round(ms, 1) for stage, ms in figures["tenants"]["voice"]["median_ms"].items()}
    lines.append(f"realtime, median ms: {where}")
    lines.append(f"admitted, by end: {figures['admitted']}; not admitted: {figures['not_admitted']}")
    lost = {when: count for when, count in figures["lost"].items() if count}
    lines.append(f"admitted and lost: {lost or 'none'}")
    retries, ladders = figures["retries"], figures["ladders"]
    if retries["count"]:
        lines.append(f"{retries['count']} retries after the told delay: {retries['admitted']:.1%} admitted")
    if ladders.get("worked"):
        lines.append(
            f"{ladders['count']} refused asked again and again: told {ladders['told_s']:.2f} s, the shortest that "
            f"worked {ladders['shortest_s']:.2f} s (medians), {ladders['median_of_ratios']:.2f} times (median of all)"
        )
    return "\n".join(lines)

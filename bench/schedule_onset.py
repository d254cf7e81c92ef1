"""The onset of an overload, in the measures of the running mesh: who is taken in by rates of before, and lost?

One simulated worker with the tiers and tenants of `overload.py`: a mix just below its capacity, a pause, and then the
load, all at once. A share of those who are told a delay comes back (`sim_returns.py`). Estimates know each answer's
length, so that who is lost was lost by the schedule.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..router.estimates import actual_cost
from ..router.jobs import TierRule
from ..router.scheduler import Scheduler
from .overload import SHARES
from .overload import TIERS as BUDGETS
from .results import RESULTS, require_green, write_result
from .schedule_returns import summary
from .schedule_sim import ours
from .sim_claims import onset_claims
from .sim_returns import Returns, Told
from .sim_run import Outcome, Pool, simulate
from .sim_workers import Service
from .sim_workload import Offer, TierLoad, mean_work

LOADS = (1.0, 2.0)
SERVICE = Service(slots=8, prefill_s=0.01, prefill_token_s=0.0002, step_s=0.003, step_sequence_s=0.0008)
BEFORE, BEFORE_S, BEGINS_S = 0.95, 12.0, 14.0
"""The load before, when it ends, and when the overload begins."""
RETURNS = 0.3
_LENGTHS = 100, 0.5, 32, 0.8, 200
"""Median and sigma of prompts and of answers, and the longest answer; the same in each tier."""


def _tier(name: str, ttft_ms: float, deadline_ms: float, min_share: float) -> TierLoad:
    work = sum(share for (_, tier), share in SHARES.items() if tier == name)
    return TierLoad(TierRule(name, ttft_ms / 1000, min_share), deadline_ms / 1000, work, *_LENGTHS)


TIERS = [_tier(name, **budgets) for name, budgets in BUDGETS.items()]


def main(arguments: Sequence[str]) -> None:
    """Runs all, prints each aim beside what was reached, and writes the figures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench schedule_onset", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the load lasts")
    parser.add_argument("--seeds", type=int, default=16, help="runs of each, taken together")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    rows = [run(load, given.seconds, range(given.seeds)) for load in given.loads]
    found = onset_claims(rows)
    told = {"seconds": given.seconds, "seeds": given.seeds, "share": RETURNS, "capacity_per_s": capacity_per_s()}
    told |= {"claims": [claim.data() for claim in found], "rows": rows}
    path = write_result("schedule_onset", told, green=green, folder=given.out)
    show(rows)
    print(*found, path, sep="\n")


@cache
def capacity_per_s() -> float:
    """Requests that the worker can do at its fullest batch; all tiers ask for the same lengths."""
    return 1.0 / mean_work(TIERS[0], SERVICE)


def offers(load: float, seconds: float, seed: int) -> list[Offer]:
    """All first requests of a run: Poisson arrivals, of which each tenant has its share."""
    rng = random.Random(f"onset {load} {seed}")
    ranks = {tier.rule.name: rank for rank, tier in enumerate(TIERS)}
    asked: list[Offer] = []
    for now, end, part in ((0.0, BEFORE_S, BEFORE), (BEGINS_S, BEGINS_S + seconds, load)):
        while (now := now + rng.expovariate(part * capacity_per_s())) < end:
            ((tenant, name),) = rng.choices(list(SHARES), list(SHARES.values()))
            rank = ranks[name]
            asked.append(Offer(now, tenant, rank, *TIERS[rank].lengths(rng), request=len(asked) + 1))
    return asked


def _schedule() -> Scheduler:
    return ours([tier.rule for tier in TIERS])


def run(load: float, seconds: float, seeds: Sequence[int]) -> dict[str, Any]:
    """Of all runs together, from the onset on. Who attained is told of those that came first, at once and with what
    came of coming back; who came back and was taken in counts among the admitted."""
    outcomes: list[Outcome] = []
    everybody: list[Told] = []
    end = BEGINS_S + seconds
    for seed in seeds:
        returns = Returns(seed, RETURNS)
        asked = offers(load, seconds, seed)
        done = simulate(_schedule, asked, Pool(SERVICE, 1), clairvoyant=True, returns=returns, tiers=TIERS)
        outcomes += [outcome for outcome in done.outcomes if outcome.offer.at >= BEGINS_S]
        everybody += [told for told in returns.told if told.at >= BEGINS_S]
    taken = [outcome for outcome in outcomes if outcome.taken]
    first = [outcome for outcome in outcomes if not outcome.offer.again]
    offered = Counter(outcome.tier.rule.name for outcome in first)
    useful = {tier.rule.name: 0.0 for tier in TIERS}
    for outcome in taken:
        if outcome.complete and outcome.ended is not None and outcome.ended <= end:
            useful[outcome.tier.rule.name] += actual_cost(outcome.offer.prompt, outcome.offer.output)
    return {
        "scenario": "onset",
        "load": load,
        "offered": len(first),
        "admitted": len(taken),
        "lost": sum(not outcome.complete for outcome in taken),
        "attained": {name: count / max(1, offered[name]) for name, count in _attained(first).items()},
        "attained_in_the_end": {name: count / max(1, offered[name]) for name, count in _attained(outcomes).items()},
        "useful_share": {name: work / max(1.0, sum(useful.values())) for name, work in useful.items()},
        "all": summary(everybody, end),
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table."""
    names = [tier.rule.name for tier in TIERS]
    table = Table("load", "offered", "taken in", "lost", *names, "batch's work", "back", "taken", "delay ÷ shortest")
    for row in rows:
        counts = (str(row[key]) for key in ("offered", "admitted", "lost"))
        shares = (f"{row['attained'][name]:.1%}, {row['attained_in_the_end'][name]:.1%}" for name in names)
        back = row["all"]
        ends = ("–" if back[key] is None else f"{back[key]:.3f}" for key in ("taken", "to_shortest"))
        table.add_row(
            f"{row['load']:g}", *counts, *shares, f"{row['useful_share']['batch']:.1%}", str(back["back"]), *ends
        )
    console = Console(width=140)
    console.print(table)
    console.print("Of each tier: what attained it at once, and with what came of coming back.")


def _attained(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many did, by tier."""
    found = Counter(outcome.tier.rule.name for outcome in outcomes if outcome.attained)
    return {tier.rule.name: found[tier.rule.name] for tier in TIERS}

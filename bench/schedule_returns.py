"""Clients that come back after the delay that they were told: how many are taken in, and was it the shortest delay?

The router's scheduler in virtual time under lasting overload, as in `schedule_sim`; see `sim_returns.py` for clients.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .results import RESULTS, plot_lines, require_green, write_result
from .schedule_sim import WORKERS, ours
from .sim_claims import return_claims
from .sim_figures import WARM_UP_S, figures
from .sim_returns import Returns, Told
from .sim_run import RULES, Pool, simulate
from .sim_workers import Service
from .sim_workload import SCENARIOS, Scenario, offers

LOADS = (1.5, 2.0)
ALL = "all"


def main(arguments: Sequence[str]) -> None:
    """Runs all, prints each aim beside what was reached, and writes figures and a picture."""
    parser = argparse.ArgumentParser(prog="tiermesh bench schedule_returns", description=__doc__)
    parser.add_argument("--horizon", type=float, default=300.0, help="simulated seconds in which requests come")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, taken together")
    parser.add_argument("--share", type=float, default=1.0, help="of those who are told a delay, who comes back")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--scenarios", nargs="+", default=["poisson", "bursty", "flood"])
    parser.add_argument("--name", default="schedule_returns", help="of the result's files")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in given.scenarios]
    rows = [
        {"scenario": scenario.name, "load": load} | run(scenario, load, given.horizon, range(given.seeds), given.share)
        for scenario in scenarios
        for load in given.loads
    ]
    found = return_claims(rows)
    told = {"horizon_s": given.horizon, "seeds": given.seeds, "share": given.share, "workers": WORKERS}
    told |= {"claims": [claim.data() for claim in found], "rows": rows}
    path = write_result(given.name, told, green=green, folder=given.out)
    draw(rows, given.name, given.out)
    show(rows)
    print(*found, path, sep="\n")


def run(scenario: Scenario, load: float, horizon_s: float, seeds: Sequence[int], share: float) -> dict[str, Any]:
    """Of all runs together, by tier and over all tiers."""
    everybody: list[Told] = []
    attained: dict[str, list[float]] = {tier.name: [] for tier in RULES}
    pool = Pool(Service(), WORKERS)
    for seed in seeds:
        returns = Returns(seed, share)
        asked = offers(scenario, load, pool.service, WORKERS, horizon_s, seed)
        done = simulate(ours, asked, pool, returns=returns)
        everybody += [told for told in returns.told if WARM_UP_S <= told.at < horizon_s]
        for name, tier in figures(done, horizon_s)["tiers"].items():
            attained[name].append(tier["attained"])
    told: dict[str, Any] = {
        tier.name: summary([one for one in everybody if one.tier == tier.name], horizon_s) for tier in RULES
    }
    told[ALL] = summary(everybody, horizon_s)
    return told | {"attained": {name: statistics.fmean(values) for name, values in attained.items()}}


def summary(everybody: Sequence[Told], horizon_s: float) -> dict[str, float | None]:
    """Counts, shares of those who came back while others still came, and delays in seconds.

    Medians are over requests; a request's shortest delay is at most the told one, if that worked.
    """
    promised = [told for told in everybody if told.delay_s is not None]
    back = [told for told in promised if told.back is not None and told.returns_at is not None]
    back = [told for told in back if told.returns_at is not None and told.returns_at <= horizon_s]
    probed = [(told.delay_s, shortest) for told in promised if (shortest := told.shortest_worked_s) is not None]
    return {
        "refused": len(everybody),
        "told": len(promised),
        "back": len(back),
        "taken": _share([told.taken for told in back]),
        "ran": _share([told.back is not None and told.back.ran for told in back]),
        "in_time": _share([told.in_time for told in back]),
        "delay_s": _median([told.delay_s for told in promised if told.delay_s is not None]),
        "shortest_s": _median([shortest for _, shortest in probed]),
        "to_shortest": _median([delay / shortest for delay, shortest in probed if delay is not None]),
        "probed": len(probed),
    }


def draw(rows: Sequence[Mapping[str, Any]], name: str, folder: Path) -> None:
    """Who of those that come back is taken in, by load."""
    lines = {}
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        own = [row for row in rows if row["scenario"] == scenario and row[ALL]["taken"] is not None]
        for what in ("taken", "in_time"):
            lines[f"{scenario}, {what.replace('_', ' ')}"] = ([r["load"] for r in own], [r[ALL][what] for r in own])
    axes = "offered ÷ capacity", "share of those who come back"
    plot_lines(name, "back after the delay that was told", axes, lines, folder)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table."""
    table = Table(
        "scenario", "load", "tier", "refused", "told", "back", "taken", "ran", "in time", "delay", "÷ shortest"
    )
    for row in rows:
        for name in (*(tier.name for tier in RULES), ALL):
            if (own := row[name])["refused"]:
                counts = (str(own[key]) for key in ("refused", "told", "back"))
                shares = (_percent(own[key]) for key in ("taken", "ran", "in_time"))
                delays = (_number(own["delay_s"], " s"), _number(own["to_shortest"], ""))
                table.add_row(row["scenario"], f"{row['load']:g}", name, *counts, *shares, *delays)
    Console(width=140).print(table)


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.2f}{unit}"

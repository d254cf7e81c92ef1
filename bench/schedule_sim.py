"""The schedule in simulation: its order beside four others and an oracle, from 0.7 to 2 times what the mesh can do.

The very class that the router runs decides over simulated workers (`sim_workers.py`), for requests that come as
`sim_workload.py` says. All policies share estimates, admission and workers (`sim_policies.py`); nobody but the oracle
knows an answer's length. Virtual time: the figures hang on the seed, not on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..router.jobs import LARGEST_COST, TenantRule, TierRule
from ..router.scheduler import Scheduler
from .results import RESULTS, plot_lines, require_green, write_result
from .sim_claims import claims
from .sim_figures import WARM_UP_S, bounds, figures, fluid_bound, realtime_work
from .sim_policies import BASELINES, MAX_QUEUED, TENANT_QUEUED, Oracle, Policy
from .sim_run import RULES, Pool, simulate
from .sim_workers import Service
from .sim_workload import SCENARIOS, Scenario, offers

WORKERS = 4
LOADS = (0.7, 1.0, 1.5, 2.0)
ALPHA = 1.0
"""The configuration's default."""
OURS, ORACLE = "tiermesh", "oracle"
_ANY_TENANT = TenantRule(weight=1.0, concurrent=10**6, queued=TENANT_QUEUED)


def main(arguments: Sequence[str]) -> None:
    """Runs all policies over all scenarios and loads, prints and writes figures and pictures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench schedule_sim", description=__doc__)
    parser.add_argument("--horizon", type=float, default=200.0, help="simulated seconds in which requests come")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, averaged")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--scenarios", nargs="+", default=[s.name for s in SCENARIOS])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in given.scenarios]
    with Progress() as progress:
        bar = progress.add_task("runs", total=len(scenarios) * len(given.loads) * given.seeds)
        rows = []
        for scenario in scenarios:
            for load in given.loads:
                runs = []
                for seed in range(given.seeds):
                    runs.append(run_all(scenario, load, given.horizon, seed))
                    progress.advance(bar)
                rows.append({"scenario": scenario.name, "load": load} | summary(runs) | {"runs": runs})
    told = {"alpha": ALPHA, "workers": WORKERS, "horizon_s": given.horizon, "bounds": bounds(), "rows": rows}
    found = claims(rows)
    told["claims"] = [claim.data() for claim in found]
    path = write_result("schedule_sim", told, green=green, folder=given.out)
    draw(rows, given.out)
    if given.json:
        print(json.dumps(told))
    else:
        show(rows)
        print(*found, path, sep="\n")


def policies() -> dict[str, Callable[[], Policy]]:
    """By name, ours first."""
    made: dict[str, Callable[[], Policy]] = {OURS: ours}
    made |= {name: lambda kind=kind: kind(RULES) for name, kind in BASELINES.items()}  # type: ignore[misc]
    return made | {ORACLE: lambda: Oracle(RULES)}


def ours(rules: Sequence[TierRule] = RULES) -> Scheduler:
    """As the router makes it."""
    return Scheduler(rules, lambda _: _ANY_TENANT, largest_cost=LARGEST_COST, max_queued=MAX_QUEUED, alpha=ALPHA)


def run_all(scenario: Scenario, load: float, horizon_s: float, seed: int) -> dict[str, Any]:
    """Every policy's figures over the same offers."""
    dead = None if scenario.dead is None else (scenario.dead[0] * horizon_s, scenario.dead[1] * horizon_s)
    pool = Pool(Service(), WORKERS, dead)
    offered = offers(scenario, load, pool.service, WORKERS, horizon_s, seed)
    told: dict[str, Any] = {
        "fluid_bound_per_s": fluid_bound(offered, pool, horizon_s),
        "realtime_work": realtime_work(offered, pool),
    }
    for name, policy in policies().items():
        told[name] = figures(simulate(policy, offered, pool, clairvoyant=name == ORACLE), horizon_s)
    return told


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is claimed of one scenario at one load: means over the seeds, extremes where a bound is meant."""
    goodput = {name: statistics.fmean(run[name]["goodput_per_s"] for run in runs) for name in policies()}
    best = max(BASELINES, key=lambda name: goodput[name])
    mine = [run[OURS] for run in runs]
    jain = [index["mean"] for told in mine for index in told["jain"].values()]
    limits = bounds()
    return {
        "goodput_per_s": goodput,
        "fluid_bound_per_s": statistics.fmean(run["fluid_bound_per_s"] for run in runs),
        "best_other": best,
        "to_best_other": goodput[OURS] / goodput[best],
        "to_oracle": goodput[OURS] / goodput[ORACLE],
        "attained": {
            tier.name: statistics.fmean(told["tiers"][tier.name]["attained"] for told in mine) for tier in RULES
        },
        "batch_share": min(told["useful_share"]["batch"] for told in mine),
        "realtime_work": statistics.fmean(run["realtime_work"] for run in runs),
        "jain": min(jain, default=None),
        "wasted_tokens": max(told["wasted_tokens"] for told in mine),
        "lag_to_bound": max(told["largest_lag"] for told in mine) / limits["largest_lag"],
        "wait_to_bound": max(
            told["longest_wait"][name] / limit for told in mine for name, limit in limits["longest_wait"].items()
        ),
    }


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Goodput by load, a picture for each scenario, and what share of the realtime requests attain their tier."""
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        own = [row for row in rows if row["scenario"] == scenario]
        loads = [row["load"] for row in own]
        lines = {name: (loads, [row["goodput_per_s"][name] for row in own]) for name in policies()}
        lines["no schedule exceeds"] = (loads, [row["fluid_bound_per_s"] for row in own])
        axes = "offered ÷ capacity", "requests per second that attain their tier"
        plot_lines(f"schedule_sim_{scenario}", f"goodput, {scenario}", axes, lines, folder)
        attained = {
            name: (
                loads,
                [statistics.fmean(r[name]["tiers"]["realtime"]["attained"] for r in row["runs"]) for row in own],
            )
            for name in policies()
        }
        axes = "offered ÷ capacity", "share of offered realtime requests"
        title = f"realtime requests that attain their tier, {scenario}"
        plot_lines(f"schedule_sim_{scenario}_realtime", title, axes, attained, folder)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of the claims."""
    columns = "scenario", "load", "goodput/s", "÷ best other", "÷ oracle", "÷ bound"
    table = Table(*columns, "realtime", "standard", "batch", "batch share", "Jain", "lag", "wait", "wasted")
    for row in rows:
        mine = row["goodput_per_s"][OURS]
        table.add_row(
            row["scenario"],
            f"{row['load']:g}",
            f"{mine:.1f}",
            f"{row['to_best_other']:.2f} ({row['best_other']})",
            f"{row['to_oracle']:.2f}",
            f"{mine / row['fluid_bound_per_s']:.2f}",
            *(f"{share:.1%}" for share in row["attained"].values()),
            f"{row['batch_share']:.1%}",
            "–" if row["jain"] is None else f"{row['jain']:.3f}",
            f"{row['lag_to_bound']:.2f}",
            f"{row['wait_to_bound']:.2f}",
            f"{row['wasted_tokens']:.1%}",
        )
    console = Console(width=160)
    console.print(table)
    console.print(f"Shares are of what was offered after {WARM_UP_S:g} s; lag and wait of their bounds.")

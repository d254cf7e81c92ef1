"""CPU of one step of the schedule while 1,000 requests wait: one ends, the next is dispatched, and one comes."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

from ..router.choice import room_of
from ..router.jobs import LARGEST_COST, Dispatch, Job, TenantRule
from ..router.scheduler import Scheduler
from .results import RESULTS, plot_bars, require_green, write_result
from .sim_run import RULES

_SLOTS = 64
_FAR = 1e6
"""Deadlines in seconds: nobody is refused, so that as many wait all the time."""


def main(arguments: Sequence[str]) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="tiermesh bench schedule_cost", description=__doc__)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--tenants", type=int, nargs="+", default=[4, 12, 100, 1000])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7, help="of each; the least of them counts")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    rounds = {
        str(tenants): [step_us(tenants, given.waiting, given.steps) for _ in range(given.rounds)]
        for tenants in given.tenants
    }
    least = {tenants: min(times) for tenants, times in rounds.items()}
    path = write_result(
        "schedule_cost", {"waiting": given.waiting, "step_us": least, "rounds": rounds}, green=green, folder=given.out
    )
    bars = {f"{tenants} tenants": value for tenants, value in least.items()}
    plot_bars("schedule_cost", f"a step of the schedule, {given.waiting} waiting", "µs of CPU", bars, given.out)
    for name, value in bars.items():
        print(f"{value:7.1f} µs: {name}")
    print(path)


def step_us(tenants: int, waiting: int, steps: int) -> float:
    """Mean CPU of a step, in µs, over three tiers with jobs of 100 to 3,000 tokens."""
    rng = random.Random(tenants)
    rule = TenantRule(1.0, _SLOTS, 10**6)
    schedule = Scheduler(RULES, lambda _: rule, largest_cost=LARGEST_COST, max_queued=10**6, alpha=1.0)
    schedule.slots, schedule.room = _SLOTS, room_of(_SLOTS)
    running: list[int] = []
    now = 0.0

    def come(number: int) -> None:
        tenant, tier = str(rng.randrange(tenants)), rng.choice(RULES).name
        job = Job(number, tenant, tier, rng.uniform(100, 3000), now + _FAR, 1.0, 0.2, number)
        running.extend(d.job for d in [*schedule.arrive(job, now), *schedule.decide(now)] if isinstance(d, Dispatch))

    for number in range(1, waiting + _SLOTS + 1):
        come(number)
    began = time.process_time()
    for number in range(waiting + _SLOTS + 1, waiting + _SLOTS + 1 + steps):
        now += 0.01
        schedule.finish(running.pop(rng.randrange(len(running))), 1000.0, now)
        running.extend(decision.job for decision in schedule.decide(now))
        come(number)
    return 1e6 * (time.process_time() - began) / steps

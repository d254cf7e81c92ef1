"""What the schedule would do with a job that came now, tried on a twin of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..common.errors import TiermeshError
from .jobs import Decision, Dispatch, Job, Refusal
from .scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The verdict."""

    error: TiermeshError | None
    """The refusal, if it is refused at once."""
    place: int = 0
    """Waiting jobs that get a slot before it, while no other comes and those that run end in the order they began."""
    wait_s: float | None = None
    """0 when it starts at once; None when it waits and no measured rate says for how long."""


def rehearse(scheduler: Scheduler, job: Job, now: float) -> Rehearsed:
    """Lets the job arrive at a twin; the scheduler itself is left as it is. The job's number must be a new one."""
    wait_s = scheduler.expected_wait_s(job)
    twin = scheduler.twin()
    decision = _of(job, [*twin.arrive(job, now), *twin.decide(now)])
    if isinstance(decision, Refusal):
        return Rehearsed(decision.error)
    if decision is not None:
        return Rehearsed(None, 0, 0.0)
    return Rehearsed(None, _place(twin, job, now), wait_s)


def _place(twin: Scheduler, job: Job, now: float) -> int:
    """How many are dispatched before it as the running jobs end, one by one, each at the cost that was expected."""
    before = 0
    while running := twin.running_costs:
        number, cost = next(iter(running.items()))
        twin.finish(number, cost, now)
        decisions = twin.decide(now)
        if (decision := _of(job, decisions)) is not None:
            ahead = decisions[: decisions.index(decision)]
            return before + sum(isinstance(other, Dispatch) for other in ahead)
        before += sum(isinstance(other, Dispatch) for other in decisions)
    return before


def _of(job: Job, decisions: Iterable[Decision]) -> Decision | None:
    return next((decision for decision in decisions if decision.job == job.number), None)

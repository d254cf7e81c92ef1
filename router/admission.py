"""Who is taken in, and what the others are told: estimated starts and retry delays from measured drain rates.

The estimates speak of the job that comes now: what is ahead of it in its tier (`FairQueue.ahead`) ÷ the rate at which
its tier is served while it waits. That rate has in it what higher tiers take and what shares give. Nobody is
refused on a guess: without a measured rate there is no estimated start, and without a wait no refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..common.errors import DeadlineExceeded, Overloaded, TiermeshError
from .averages import DrainRate
from .jobs import Job

MAX_RETRY_S = 30.0
_MIN_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a job that comes now may expect; zeros where nothing was measured."""

    wait_s: float
    """Until it starts."""
    turn_s: float
    """Until its own cost has drained at its tenant's share of the rate."""


class Admission:
    """The rates, and the refusals that follow from them."""

    def __init__(self, tiers: Sequence[str]) -> None:
        self._drains = {tier: DrainRate() for tier in tiers}
        self._at: float | None = None
        self._told: dict[tuple[str, str], float] = {}
        """When the last of those who were sent away is to come back, by tier and tenant."""

    def passed(self, now: float, waiting: Sequence[str]) -> None:
        """Time went by while these tiers had jobs that wait; idle slots say nothing about speed."""
        since = now if self._at is None else self._at
        self._at = now
        if now > since:
            for tier in waiting:
                self._drains[tier].add(0.0, now - since)

    def drained(self, tier: str, cost: float) -> None:
        """A job that had to wait got a slot."""
        self._drains[tier].add(cost, 0.0)

    def prospect(self, job: Job, ahead: float, share: float) -> Prospect:
        """For a job with this much of its tier ahead of it, and its tenant's share of the tier's service."""
        rate = self._drains[job.tier].per_s
        return Prospect(ahead / rate, job.cost / (rate * share)) if rate else Prospect(0.0, 0.0)

    def late(self, job: Job, prospect: Prospect, now: float) -> TiermeshError | None:
        """Why a job that comes now can't be done in time."""
        if job.deadline <= now:
            return DeadlineExceeded("the deadline had passed when the request came; allow more time")
        wait_s = prospect.wait_s
        excess_s = now + wait_s + job.service_s - job.deadline
        # Without a wait the refusal would rest on a guess about the answer's length alone; a slot is free, so try.
        if wait_s > 0 and excess_s > 0:
            why = f"it would start in {wait_s:.1f} s and miss its deadline"
            return self.overloaded(why, job, excess_s, prospect.turn_s, now)
        return None

    def overloaded(self, why: str, job: Job, excess_s: float, turn_s: float, now: float) -> Overloaded:
        """The refusal for want of capacity. `excess_s` is what has to drain first, at the measured rate, in seconds.

        Those whom the same queue sends away are told to come back one after the other, `turn_s` apart.
        """
        key = (job.tier, job.tenant)
        after_others_s = self._told.get(key, now) - now + turn_s
        retry_s = min(max(excess_s, after_others_s, _MIN_RETRY_S), MAX_RETRY_S)
        self._told[key] = now + retry_s
        return Overloaded(f"{why}; try again in {retry_s:.1f} s", retry_after_s=retry_s)

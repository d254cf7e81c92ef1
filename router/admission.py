"""Who is taken in, and what the others are told.

A job that comes is taken when it is expected to start, and to end, in time: behind what waits of its tenant, what
fairness gives the others meanwhile, and those who were promised a place before (`promises.py`). Rates are the measured
ones, of the tier (`drains.py`) and of the tenant (`backlog.py`), whichever is slower. Nobody is refused on a guess:
without a measured rate there is no estimated wait, and without anybody ahead no refusal.

Who is taken in is to be brought home, so all that waits counts as ahead, late jobs too, which have their last call
(`backlog.py`); and since rates swing, who comes without a promise must be in time even if the wait is twice as long,
and six times where it would be late. That also keeps queues short, so that the goodput grows
(`docs/decisions/028-short-queues.md`). Below the highest tier it must be in time besides if its tier is given no more
than it is sure of (`assurance.py`) and its answer takes as long as it may.

A job that can't start within its TTFT budget goes behind all that can. What late jobs are given while they wait is
measured by itself, since under lasting overload that is nothing before their last call. Where promises are out and
mostly taken up, nobody is taken in to be late: it is told when it would be in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..common.errors import DeadlineExceeded, Overloaded, TiermeshError
from .assurance import sure_part
from .demand import Demand
from .drains import Drains
from .fair import Ahead, FairQueue
from .jobs import Job, TenantRule, TierRule
from .lags import Lags
from .promises import EARLY_S, MAX_DELAY_S, Promises

UNMEASURED_S = 1.0
"""A rate is known after a second of waiting, see `DrainRate`; who is refused before is told to come back then."""
_MARGIN = 1.0
"""Who comes is taken in if it were in time even with so many times the wait more."""
_SPREAD = 0.25
"""Who was promised a place is taken in if it were in time with so much less to wait: rates swing by about that."""
_NOBODY: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Why a job can't be taken for want of capacity."""

    why: str
    free_s: float | None
    """Seconds after which there would be a place; None where no time helps."""


class Admission:
    """Judges over the scheduler's queues."""

    def __init__(
        self,
        queues: Mapping[str, FairQueue],
        tenant: Callable[[str], TenantRule],
        lags: Lags,
        demand: Demand,
        largest_cost: float,
    ) -> None:
        self.rules: Mapping[str, TierRule] = {}
        self._queues = queues
        self._highest = next(iter(queues))
        self._tenant = tenant
        self._c_max = largest_cost
        self._drains = Drains(list(queues))
        self._lags = lags
        self._demand = demand
        self._promises = Promises(list(queues))

    def passed(self, now: float, waiting: Sequence[str], *, full: bool) -> None:
        """Time went by while these tiers waited for slots, or none was free."""
        self._drains.passed(now, waiting, full=full)
        self._promises.passed(now)

    def drained(self, tier: str, cost: float) -> None:
        """A job that had to wait got a slot."""
        self._drains.drained(tier, cost)

    def ended(self, cost: float) -> None:
        """A job ended when no slot was free."""
        self._drains.ended(cost)

    def taken(self, job: Job) -> None:
        """A job was taken in, and needs the place no more that it may have been promised."""
        self._promises.taken(job)

    def objection(self, job: Job, now: float, *, full: bool) -> TiermeshError | NoPlace | None:
        """Why a job that comes now can't be taken; `full` where the router has no room for it."""
        if job.deadline <= now:
            return DeadlineExceeded("the deadline had passed when the request came; allow more time")
        left_s = job.deadline - now
        promise = self._promises.of(job)
        comes_back = promise is not None and promise.due <= now + EARLY_S
        waiting = sum(queue.waiting(job.tenant) for queue in self._queues.values())
        # The highest tier waits for nobody else, so its wait swings little, and its refusals cost most.
        margin = 0.0 if job.tier == self._highest else _MARGIN
        queued = ahead = self._ahead(job)
        may_be_late, expected = True, 0.0
        if comes_back:
            margin = -_SPREAD
        elif waiting:  # else its turn would go by unused
            promised = self._promises.ahead(job, promise)
            ahead = self._ahead(job, promised) if promised else queued
            may_be_late = not self._promises.hold(job)
            expected = self._promises.expected(job.tenant) - (promise is not None)
        start_s = self._start_s(job, ahead, margin, may_be_late)
        # Without a wait the refusal would rest on a guess about the answer's length alone; a slot is free, so try.
        if now + start_s + self._takes_s(job) > job.deadline and self._wait_s(job, queued) > 0:
            when = "after all that can still be in time" if start_s == math.inf else f"in {start_s:.1f} s"
            return NoPlace(f"it would start {when} and miss its deadline", self.free_s(job, left_s))
        if self._unsure(job, left_s, queued, max(0.0, margin), comes_back=comes_back):
            why = "its tier's share alone might not let it start in time for its deadline"
            return NoPlace(why, self.free_s(job, left_s))
        if waiting and waiting + max(0.0, expected) >= self._tenant(job.tenant).queued:
            return NoPlace(f"{waiting} requests of this tenant wait already", self.turn_s(job))
        return NoPlace("too many requests wait", self.turn_s(job)) if full else None

    def refusal(self, job: Job, objection: TiermeshError | NoPlace, now: float) -> TiermeshError:
        """Keeps a place for a job that can have one, and tells when it is due."""
        if isinstance(objection, TiermeshError):
            return objection
        if objection.free_s is None:
            return Overloaded(f"{objection.why}, as it would at any other time; allow more time")
        most = self._tenant(job.tenant).queued
        delay_s = self._promises.make(job, self._cost(job), objection.free_s, most, now)
        if delay_s is None:
            return Overloaded(f"{objection.why}; no place of the next {MAX_DELAY_S:.0f} s is left to promise")
        return Overloaded(f"{objection.why}; try again in {delay_s:.1f} s", retry_after_s=delay_s)

    def waits(self, job: Job) -> bool:
        """Whether anything is ahead of a job, as far as measured."""
        return self._wait_s(job, self._ahead(job)) > 0

    def wait_s(self, job: Job) -> float:
        """Time until a job that comes now starts, behind those who were promised a place before it."""
        return self._start_s(job, self._ahead(job, self._promises.ahead(job, self._promises.of(job))))

    def free_s(self, job: Job, patience_s: float) -> float | None:
        """Time until a job like this, with so much time to its deadline, would be taken and be in time; None: never."""
        latest_s, on_time_s = patience_s - self._takes_s(job), self.rules[job.tier].ttft_s - job.first_s
        if latest_s <= 0:
            return None
        # Less a part of the margin that it is judged with when it comes: without, some could come twice as early.
        told, ahead = 1.0 - _SPREAD / 2, self._ahead(job, self._promises.ahead(job, None))
        wait_s = told * self._wait_s(job, ahead)
        free_s = wait_s - (min(latest_s, on_time_s) if on_time_s > 0 else latest_s)  # else it is late from the start
        unsure = self._unsure(job, patience_s, ahead)
        return max(free_s, told * self._drains.seconds(job.tier, unsure)) if unsure else free_s

    def turn_s(self, job: Job) -> float:
        """Time until its tenant's queue has room again, for those who were promised a place before and for this job.

        Those come when about that much has drained, not at that very moment: some of the queue is left for that.
        """
        tenant, queue = job.tenant, self._queues[job.tier]
        before = self._promises.ahead(job, None).get(tenant, 0.0)
        cost = before + self._cost(job) + _SPREAD * queue.cost_of(tenant)
        turn_s = self._drains.seconds(job.tier, cost) / queue.share(tenant, self._weight)
        return max(turn_s, queue.own_wait_s(tenant, cost)) or UNMEASURED_S

    def _ahead(self, job: Job, promised: Mapping[str, float] = _NOBODY) -> Ahead:
        """What is served before a job that comes now, of those who wait and who was promised a place."""
        return self._queues[job.tier].ahead(job.tenant, self._cost(job), self._weight, promised)

    def _start_s(self, job: Job, ahead: Ahead, margin: float = 0.0, may_be_late: bool = True) -> float:
        """Time until a job that comes now starts.

        `margin` is by what share longer it is thought to be than rates say; where it would be late, by twice that
        besides. Endless if it would be late and may not.
        """
        wait_s = (1.0 + margin) * self._wait_s(job, ahead, wary=margin > 0)
        if wait_s + job.first_s <= self.rules[job.tier].ttft_s:
            return wait_s
        if not may_be_late:
            return math.inf
        late_wait_s = self._queues[job.tier].late_wait_s(job.tenant, self._cost(job))
        return (1.0 + 2.0 * margin) * max(wait_s, late_wait_s)

    def _wait_s(self, job: Job, ahead: Ahead, wary: bool = False) -> float:
        """Time until what is ahead has been served."""
        own_wait_s = self._queues[job.tier].own_wait_s(job.tenant, ahead.own, wary)
        return max(self._drains.seconds(job.tier, ahead.cost, wary), own_wait_s)

    def _unsure(
        self, job: Job, patience_s: float, ahead: Ahead, margin: float = 0.0, *, comes_back: bool = False
    ) -> float:
        """Cost that its tier must be given before a job with so much time would surely be in time; 0 if it is now."""
        tier = self.rules[job.tier]
        if job.tier == self._highest or not tier.min_share or not ahead.cost:
            return 0.0
        needed = (1.0 + margin) * (ahead.cost + self._cost(job))
        part = sure_part(tier, self._demand.above(job.tier), comes_back=comes_back)
        given_s = self._drains.pool_s(max(0.0, needed - self._lags.of(job.tier))) / part
        latest_s = patience_s - self._takes_s(job)
        return needed * (1.0 - latest_s / given_s) if given_s > max(0.0, latest_s) else 0.0

    def _takes_s(self, job: Job) -> float:
        """As long as it may take; of the highest tier as long as it is expected to, since its refusals cost most."""
        return job.service_s if job.tier == self._highest else max(job.service_s, job.slow_s)

    def _cost(self, job: Job) -> float:
        return min(job.cost, self._c_max)

    def _weight(self, tenant: str) -> float:
        return self._tenant(tenant).weight

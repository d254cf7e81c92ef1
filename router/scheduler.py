"""Who runs next. No I/O and no clock of its own: arrivals, completions and the time come in, decisions go out.

Tiers: strict order with a guaranteed share. At each dispatch of cost ĉ the lag of every tier that waits grows by its
share of ĉ, and the served tier's falls by ĉ, never below zero; once the largest lag reaches the largest cost, that tier
is served, else the highest one that waits. With n tiers whose shares m sum to M < 1, a tier that waits is served before
c_max·(1/m + 2n/(1−M) + 1) tokens of others have been dispatched: a lag reaches c_max after c_max/m tokens; from then on
each dispatch is forced, lowers the sum of lags by ĉ·(1−M), and that sum is below 2n·c_max.

Tenants inside a tier: `fair.py`. Inside a tenant: arrival + TTFT budget + α·expected time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..common.errors import DeadlineExceeded, Overloaded, TiermeshError
from .estimates import DrainRate
from .fair import FairQueue, Waiting

_MAX_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class TierRule:
    """A tier, highest first in the scheduler's list."""

    name: str
    ttft_s: float
    min_share: float


@dataclass(frozen=True, slots=True)
class TenantRule:
    """What the scheduler must know of a tenant."""

    weight: float
    concurrent: int
    queued: int


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work that needs a slot."""

    number: int
    """Unique."""
    tenant: str
    tier: str
    cost: float
    """Expected, in tokens, at most what the scheduler was told as the largest cost; more counts as that."""
    deadline: float
    """Monotonic seconds."""
    service_s: float = 0.0
    """Expected time from dispatch to the last token."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The job has a slot now."""

    job: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The job will not run."""

    job: int
    error: TiermeshError


Decision = Dispatch | Refusal


class Scheduler:
    """Decides; the caller carries out. Each arrived job gets exactly one decision unless it is cancelled first."""

    def __init__(
        self,
        tiers: Sequence[TierRule],
        tenant: Callable[[str], TenantRule],
        *,
        largest_cost: float,
        max_queued: int = 1024,
        alpha: float = 0.0,
    ) -> None:
        self._rules = {tier.name: tier for tier in tiers}
        self._tenant = tenant
        self._c_max = largest_cost
        self._max_queued = max_queued
        self._alpha = alpha
        self._queues = {tier.name: FairQueue() for tier in tiers}
        self._lag = {tier.name: 0.0 for tier in tiers}
        self._waiting: dict[int, Job] = {}
        self._running: dict[int, Job] = {}
        self._running_of: dict[str, int] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._drain = DrainRate()
        self._last_s: float | None = None
        self.slots = 0
        """How many jobs may run at once; set by the owner at any time."""

    @property
    def running(self) -> int:
        """Jobs that hold a slot."""
        return len(self._running)

    @property
    def lags(self) -> dict[str, float]:
        """Service that each tier is owed, in tokens."""
        return dict(self._lag)

    def set_tiers(self, tiers: Sequence[TierRule]) -> None:
        """Other budgets and shares for the same tiers, from now on."""
        assert [tier.name for tier in tiers] == list(self._rules), "tiers keep their names and order"
        self._rules = {tier.name: tier for tier in tiers}

    def queued(self, tier: str) -> int:
        """Jobs of a tier that wait."""
        return len(self._queues[tier])

    def place(self, job: int) -> int:
        """How many jobs of the same or a higher tier wait with this one; 0 when it runs."""
        waiting = self._waiting.get(job)
        return sum(self.queued(name) for name in self._at_or_above(waiting.tier)) if waiting else 0

    @property
    def next_deadline(self) -> float | None:
        """When `decide` must be called at the latest."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def arrive(self, job: Job, now: float) -> list[Decision]:
        """Takes a job into its queue. The decisions may refuse it, or one that it pushes out. Then call `decide`."""
        assert job.number not in self._waiting, "job numbers are unique"
        assert job.number not in self._running, "job numbers are unique"
        self._account(0.0, now)
        if error := self._refusal(job, now):
            return [Refusal(job.number, error)]
        decisions: list[Decision] = []
        if len(self._waiting) >= self._max_queued:
            victim = self._victim(job.tier)
            if victim is None:
                return [Refusal(job.number, self._overloaded("too many requests wait", self._wait_s(job)))]
            error = self._overloaded("a request of a higher tier took this one's place", self._wait_s(victim))
            self._leave_queue(victim)
            decisions.append(Refusal(victim.number, error))
        rule = self._rules[job.tier]
        key = now + rule.ttft_s + self._alpha * job.service_s
        self._waiting[job.number] = job
        self._queues[job.tier].push(job.tenant, Waiting(key, job.number, job.number, self._cost(job)))
        if len(self._deadlines) > 2 * len(self._waiting) + 64:  # most of its jobs have left the queue
            self._deadlines = [(waiting.deadline, waiting.number) for waiting in self._waiting.values()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (job.deadline, job.number))
        return decisions

    def decide(self, now: float) -> list[Decision]:
        """Refuses what is past its deadline, then fills free slots."""
        self._account(0.0, now)
        decisions: list[Decision] = []
        while (deadline := self.next_deadline) is not None and deadline <= now:
            job = self._waiting[heapq.heappop(self._deadlines)[1]]
            self._leave_queue(job)
            error = DeadlineExceeded("the deadline passed while the request waited for a worker; allow more time")
            decisions.append(Refusal(job.number, error))
        while len(self._running) < self.slots and (job_number := self._next()) is not None:
            decisions.append(Dispatch(job_number))
        return decisions

    def finish(self, number: int, actual_cost: float, now: float) -> None:
        """A running job has ended, for whatever reason, after this much work. Then call `decide`."""
        job = self._running.pop(number)
        self._running_of[job.tenant] -= 1
        if not self._running_of[job.tenant]:
            del self._running_of[job.tenant]
        weight = self._tenant(job.tenant).weight
        self._queues[job.tier].correct(job.tenant, (actual_cost - self._cost(job)) / weight)
        self._account(actual_cost, now)

    def cancel(self, number: int, now: float) -> bool:
        """Takes a waiting job out without a decision; False when it does not wait."""
        self._account(0.0, now)
        job = self._waiting.get(number)
        if job is None:
            return False
        self._leave_queue(job)
        return True

    def refuse_all(self, error: TiermeshError) -> list[Decision]:
        """Empties all queues."""
        decisions: list[Decision] = []
        for job in list(self._waiting.values()):
            self._leave_queue(job)
            decisions.append(Refusal(job.number, error))
        return decisions

    def _cost(self, job: Job) -> float:
        return min(job.cost, self._c_max)

    def _next(self) -> int | None:
        """Takes the next job out of its queue and accounts for it."""
        backlogged = [name for name, queue in self._queues.items() if queue.has_eligible(self._eligible)]
        if not backlogged:
            return None
        owed = max(backlogged, key=lambda name: self._lag[name])
        tier = owed if self._lag[owed] >= self._c_max else backlogged[0]
        popped = self._queues[tier].pop(lambda tenant: self._tenant(tenant).weight, self._eligible)
        assert popped is not None, "a backlogged tier has an eligible job"
        tenant, item = popped
        for name in backlogged:
            self._lag[name] += self._rules[name].min_share * item.cost
        self._lag[tier] = max(self._lag[tier] - item.cost, 0.0)
        self._clear_lag(tier)
        self._running[item.job] = self._waiting.pop(item.job)
        self._running_of[tenant] = self._running_of.get(tenant, 0) + 1
        return item.job

    def _eligible(self, tenant: str) -> bool:
        return self._running_of.get(tenant, 0) < self._tenant(tenant).concurrent

    def _leave_queue(self, job: Job) -> None:
        del self._waiting[job.number]
        self._queues[job.tier].remove(job.tenant, job.number)
        self._clear_lag(job.tier)

    def _clear_lag(self, tier: str) -> None:
        if not self.queued(tier):
            self._lag[tier] = 0.0

    def _refusal(self, job: Job, now: float) -> TiermeshError | None:
        """Why a job can't be taken."""
        if job.deadline <= now:
            return DeadlineExceeded("the deadline had passed when the request came; allow more time")
        waiting = sum(queue.waiting(job.tenant) for queue in self._queues.values())
        if waiting >= self._tenant(job.tenant).queued:
            return self._overloaded(f"{waiting} requests of this tenant wait already", self._wait_s(job))
        wait_s = self._wait_s(job)
        excess_s = now + wait_s + job.service_s - job.deadline
        # Without a wait the refusal would rest on a guess about the answer's length alone; a slot is free, so try.
        if wait_s > 0 and excess_s > 0:
            return self._overloaded(f"it would start in {wait_s:.1f} s and miss its deadline", excess_s)
        return None

    def _wait_s(self, job: Job) -> float:
        """Expected time until a job that came now would start."""
        rate = self._drain.per_s
        ahead = sum(self._queues[name].cost for name in self._at_or_above(job.tier))
        return ahead / rate if rate and ahead else 0.0

    def _at_or_above(self, tier: str) -> list[str]:
        names = list(self._rules)
        return names[: names.index(tier) + 1]

    def _victim(self, tier: str) -> Job | None:
        """The newest job of the lowest tier that waits below this one."""
        names = list(self._rules)
        for name in reversed(names[names.index(tier) + 1 :]):
            if (number := self._queues[name].newest()) is not None:
                return self._waiting[number]
        return None

    def _overloaded(self, why: str, excess_s: float) -> Overloaded:
        retry_s = min(max(excess_s, 0.1), _MAX_RETRY_S)
        return Overloaded(f"{why}; try again in {retry_s:.1f} s", retry_after_s=retry_s)

    def _account(self, finished_cost: float, now: float) -> None:
        """Feeds the drain rate: time counts while jobs wait, since idle slots say nothing about speed."""
        since = now if self._last_s is None else self._last_s
        self._last_s = now
        waited_s = max(0.0, now - since) if self._waiting else 0.0
        if finished_cost or waited_s:
            self._drain.add(finished_cost, waited_s)

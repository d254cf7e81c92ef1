"""What the router's schedule is compared with, behind the same admission: FCFS, strict, round robin, EDF, an oracle.

All take the router's estimates, its refusals (on arrival and when a job is due) and its bounds on queues. The orders
differ, and with them what is ahead of a job that comes. Nobody comes back to them, so they promise nothing.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..common.errors import DeadlineExceeded, Overloaded
from ..router.drains import Drains
from ..router.jobs import Decision, Dispatch, Job, Refusal, TierRule

TENANT_QUEUED = 256
MAX_QUEUED = 1024


class Policy(Protocol):
    """What `router.scheduler.Scheduler` is too."""

    slots: int

    @property
    def wake_at(self) -> float | None:
        """When `decide` must be called at the latest."""

    def arrive(self, job: Job, now: float) -> list[Decision]:
        """Takes a job in or refuses it."""

    def decide(self, now: float) -> list[Decision]:
        """Fills free slots."""

    def finish(self, number: int, actual_cost: float, now: float) -> None:
        """A job has ended."""


class Ordered:
    """One heap of waiting jobs; subclasses say by what other key, and what is ahead of whom."""

    def __init__(self, tiers: Sequence[TierRule]) -> None:
        self.slots = 0
        self._rank = {tier.name: rank for rank, tier in enumerate(tiers)}
        self._ttft_s = {tier.name: tier.ttft_s for tier in tiers}
        self._drains = Drains([*self._rank, "all"])
        self._waiting: dict[int, tuple[Job, float]] = {}
        self._heap: list[tuple[float, float, int]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._running: set[int] = set()
        self._of_tenant: Counter[str] = Counter()
        """How many wait, by tenant."""
        self._cost_of: dict[str, float] = dict.fromkeys([*self._rank, "all"], 0.0)
        """What those that wait cost, by queue."""

    @property
    def wake_at(self) -> float | None:
        """See `Policy`."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def arrive(self, job: Job, now: float) -> list[Decision]:
        """See `Policy`."""
        self._drains.passed(now, self._queues())
        wait_s = self._drains.seconds(self._queue_of(job), self._ahead(job))
        if job.deadline <= now:
            return [Refusal(job.number, DeadlineExceeded("the deadline had passed when the request came"))]
        if wait_s > 0 and now + wait_s + job.service_s > job.deadline:
            return [Refusal(job.number, Overloaded("it would miss its deadline"))]
        decisions: list[Decision] = []
        full = self._of_tenant[job.tenant] >= TENANT_QUEUED
        if full or (len(self._waiting) >= MAX_QUEUED and not (decisions := self._make_room(job))):
            return [Refusal(job.number, Overloaded("too many requests wait"))]
        self._take_in(job, now)
        return decisions

    def decide(self, now: float) -> list[Decision]:
        """See `Policy`."""
        self._drains.passed(now, self._queues())
        decisions: list[Decision] = []
        while (deadline := self.wake_at) is not None and deadline <= now:
            number = heapq.heappop(self._deadlines)[1]
            self._let_go(number)
            decisions.append(Refusal(number, DeadlineExceeded("the deadline passed while the request waited")))
        while len(self._running) < self.slots and self._waiting:
            job, arrived = self._let_go(self._first())
            if error := self._hopeless(job, arrived, now):
                decisions.append(Refusal(job.number, error))
                continue
            if now > arrived:
                self._drains.drained(self._queue_of(job), job.cost)
            self._running.add(job.number)
            decisions.append(Dispatch(job.number))
        return decisions

    def finish(self, number: int, actual_cost: float, now: float) -> None:
        """See `Policy`."""
        self._drains.passed(now, self._queues())
        self._running.discard(number)

    def _take_in(self, job: Job, now: float) -> None:
        self._waiting[job.number] = (job, now)
        self._of_tenant[job.tenant] += 1
        self._cost_of[self._queue_of(job)] += job.cost
        self._enter(job, now)
        heapq.heappush(self._deadlines, (job.deadline, job.number))

    def _let_go(self, number: int) -> tuple[Job, float]:
        job, arrived = self._waiting.pop(number)
        self._of_tenant[job.tenant] -= 1
        self._cost_of[self._queue_of(job)] -= job.cost
        if not self._waiting:
            self._cost_of = dict.fromkeys(self._cost_of, 0.0)  # no rounding is left where nothing waits
        return job, arrived

    def _key(self, job: Job, now: float) -> tuple[float, float]:
        """The job with the smallest is next: here, who came first."""
        return (now, 0.0)

    def _ahead(self, job: Job) -> float:
        """Cost that waits and goes before a job that comes now."""
        return self._cost_of[self._queue_of(job)]

    def _queue_of(self, job: Job) -> str:
        """The queue whose drain rate it feels."""
        return "all"

    def _queues(self) -> list[str]:
        return ["all"] if self._waiting else []

    def _make_room(self, job: Job) -> list[Decision]:
        return []

    def _enter(self, job: Job, now: float) -> None:
        heapq.heappush(self._heap, (*self._key(job, now), job.number))

    def _first(self) -> int:
        while self._heap[0][2] not in self._waiting:
            heapq.heappop(self._heap)
        return heapq.heappop(self._heap)[2]

    def _hopeless(self, job: Job, arrived: float, now: float) -> Overloaded | None:
        late = now > arrived and now + job.service_s > job.deadline
        return Overloaded("hopeless") if late and self._drains.seconds(self._queue_of(job), 1.0) else None


class Fcfs(Ordered):
    """First come, first served."""


class Strict(Ordered):
    """The highest tier first, in it who came first; a higher tier pushes out the newest of the lowest."""

    def _key(self, job: Job, now: float) -> tuple[float, float]:
        return (self._rank[job.tier], now)

    def _queue_of(self, job: Job) -> str:
        return job.tier

    def _queues(self) -> list[str]:
        return [tier for tier in self._rank if self._cost_of[tier] > 1e-6]

    def _make_room(self, job: Job) -> list[Decision]:
        victim = max((other for other, _ in self._waiting.values()), key=lambda o: (self._rank[o.tier], o.number))
        if self._rank[victim.tier] <= self._rank[job.tier]:
            return []
        self._let_go(victim.number)
        return [Refusal(victim.number, Overloaded("pushed out"))]


class Edf(Ordered):
    """The earliest deadline first."""

    def _key(self, job: Job, now: float) -> tuple[float, float]:
        return (job.deadline, now)

    def _ahead(self, job: Job) -> float:
        return sum(other.cost for other, _ in self._waiting.values() if other.deadline <= job.deadline)


class RoundRobin(Ordered):
    """One job of each tenant in turn, whatever its tier; of a tenant, who came first."""

    def __init__(self, tiers: Sequence[TierRule]) -> None:
        super().__init__(tiers)
        self._turns: deque[str] = deque()
        self._of: dict[str, deque[int]] = {}

    def _enter(self, job: Job, now: float) -> None:
        if not (queue := self._of.setdefault(job.tenant, deque())):
            self._turns.append(job.tenant)
        queue.append(job.number)

    def _first(self) -> int:
        while True:
            queue = self._of[tenant := self._turns.popleft()]
            number = queue.popleft()
            if queue:
                self._turns.append(tenant)
            if number in self._waiting:
                return number

    def _ahead(self, job: Job) -> float:
        """Of each tenant as many jobs as it has turns until then."""
        jobs: dict[str, list[float]] = {}
        for other, _ in self._waiting.values():
            jobs.setdefault(other.tenant, []).append(other.cost)
        turns = len(jobs.get(job.tenant, ())) + 1
        return sum(sum(costs[:turns]) for costs in jobs.values())


class Oracle(Ordered):
    """Knows how long each answer will be: the least work first of what can still be in time, and no refusal before.

    No tiers, no shares, no fairness: of the requests in time it gets more than a schedule with promises can. Least work
    first is a heuristic all the same; `sim_figures.fluid_bound` is what no schedule exceeds.
    """

    def arrive(self, job: Job, now: float) -> list[Decision]:
        """Takes everybody; who is too late is found out when due."""
        self._take_in(job, now)
        return []

    def _key(self, job: Job, now: float) -> tuple[float, float]:
        return (job.cost, now)

    def _hopeless(self, job: Job, arrived: float, now: float) -> Overloaded | None:
        if now <= arrived + self._ttft_s[job.tier] and now + job.service_s <= job.deadline:
            return None
        return Overloaded("hopeless")


BASELINES: Mapping[str, type[Ordered]] = {
    "fcfs": Fcfs,
    "strict": Strict,
    "round robin": RoundRobin,
    "edf": Edf,
}

"""What the router's schedule is compared with, behind the same admission: FCFS, strict, round robin, EDF, an oracle.

All take the router's estimates, its refusals (on arrival and when a job is due), its bounds on queues and its retry
delays. The orders differ, and with them what is ahead of a job that comes.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ..common.errors import DeadlineExceeded, Overloaded
from ..router.admission import Admission
from ..router.jobs import Decision, Dispatch, Job, Refusal, TierRule

TENANT_QUEUED = 256
MAX_QUEUED = 1024


class Policy(Protocol):
    """What `router.scheduler.Scheduler` is too."""

    slots: int

    @property
    def next_deadline(self) -> float | None:
        """When `decide` must be called at the latest."""

    def arrive(self, job: Job, now: float) -> list[Decision]:
        """Takes a job in or refuses it."""

    def decide(self, now: float) -> list[Decision]:
        """Fills free slots."""

    def finish(self, number: int, actual_cost: float, now: float) -> None:
        """A job has ended."""


class Ordered:
    """One heap of waiting jobs; subclasses say by what key, and what is ahead of whom."""

    def __init__(self, tiers: Sequence[TierRule]) -> None:
        self.slots = 0
        self._rank = {tier.name: rank for rank, tier in enumerate(tiers)}
        self._ttft_s = {tier.name: tier.ttft_s for tier in tiers}
        self._admission = Admission([*self._rank, "all"])
        self._waiting: dict[int, tuple[Job, float]] = {}
        self._heap: list[tuple[float, float, int]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._running: set[int] = set()

    @property
    def next_deadline(self) -> float | None:
        """See `Policy`."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def arrive(self, job: Job, now: float) -> list[Decision]:
        """See `Policy`."""
        self._admission.passed(now, self._queues())
        queued = self._in_queue(job)
        prospect = self._admission.prospect(queued, self._ahead(job), 1.0)
        if error := self._admission.late(queued, prospect, now):
            return [Refusal(job.number, error)]
        own = sum(other.tenant == job.tenant for other, _ in self._waiting.values())
        decisions: list[Decision] = []
        if own >= TENANT_QUEUED or (len(self._waiting) >= MAX_QUEUED and not (decisions := self._make_room(job, now))):
            full = self._admission.overloaded("too many requests wait", queued, 0.0, prospect.turn_s, now)
            return [Refusal(job.number, full)]
        self._waiting[job.number] = (job, now)
        self._enter(job, now)
        heapq.heappush(self._deadlines, (job.deadline, job.number))
        return decisions

    def decide(self, now: float) -> list[Decision]:
        """See `Policy`."""
        self._admission.passed(now, self._queues())
        decisions: list[Decision] = []
        while (deadline := self.next_deadline) is not None and deadline <= now:
            number = heapq.heappop(self._deadlines)[1]
            del self._waiting[number]
            decisions.append(Refusal(number, DeadlineExceeded("the deadline passed while the request waited")))
        while len(self._running) < self.slots and self._waiting:
            job, arrived = self._waiting.pop(self._first())
            if error := self._hopeless(job, arrived, now):
                decisions.append(Refusal(job.number, error))
                continue
            if now > arrived:
                self._admission.drained(self._in_queue(job).tier, job.cost)
            self._running.add(job.number)
            decisions.append(Dispatch(job.number))
        return decisions

    def finish(self, number: int, actual_cost: float, now: float) -> None:
        """See `Policy`."""
        self._admission.passed(now, self._queues())
        self._running.discard(number)

    def _key(self, job: Job, now: float) -> tuple[float, float]:
        raise NotImplementedError

    def _ahead(self, job: Job) -> float:
        """Cost that waits and goes before a job that comes now."""
        return sum(other.cost for other, _ in self._waiting.values())

    def _in_queue(self, job: Job) -> Job:
        """The job under the name of the queue whose drain rate it feels."""
        return replace(job, tier="all")

    def _queues(self) -> list[str]:
        return ["all"] if self._waiting else []

    def _make_room(self, job: Job, now: float) -> list[Decision]:
        return []

    def _enter(self, job: Job, now: float) -> None:
        heapq.heappush(self._heap, (*self._key(job, now), job.number))

    def _first(self) -> int:
        while self._heap[0][2] not in self._waiting:
            heapq.heappop(self._heap)
        return heapq.heappop(self._heap)[2]

    def _hopeless(self, job: Job, arrived: float, now: float) -> Overloaded | None:
        excess_s = now + job.service_s - job.deadline
        if excess_s <= 0 or now <= arrived:
            return None
        queued = self._in_queue(job)
        turn_s = self._admission.prospect(queued, 0.0, 1.0).turn_s
        return self._admission.overloaded("hopeless", queued, excess_s, turn_s, now) if turn_s else None


class Fcfs(Ordered):
    """First come, first served."""

    def _key(self, job: Job, now: float) -> tuple[float, float]:
        return (now, 0.0)


class Strict(Ordered):
    """The highest tier first, in it who came first; a higher tier pushes out the newest of the lowest."""

    def _key(self, job: Job, now: float) -> tuple[float, float]:
        return (self._rank[job.tier], now)

    def _ahead(self, job: Job) -> float:
        return sum(other.cost for other, _ in self._waiting.values() if other.tier == job.tier)

    def _in_queue(self, job: Job) -> Job:
        return job

    def _queues(self) -> list[str]:
        return list({job.tier for job, _ in self._waiting.values()})

    def _make_room(self, job: Job, now: float) -> list[Decision]:
        victim = max((other for other, _ in self._waiting.values()), key=lambda o: (self._rank[o.tier], o.number))
        if self._rank[victim.tier] <= self._rank[job.tier]:
            return []
        del self._waiting[victim.number]
        turn_s = self._admission.prospect(victim, 0.0, 1.0).turn_s
        return [Refusal(victim.number, self._admission.overloaded("pushed out", victim, 0.0, turn_s, now))]


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
        self._waiting[job.number] = (job, now)
        self._enter(job, now)
        heapq.heappush(self._deadlines, (job.deadline, job.number))
        return []

    def _key(self, job: Job, now: float) -> tuple[float, float]:
        return (job.cost, now)

    def _hopeless(self, job: Job, arrived: float, now: float) -> Overloaded | None:
        if now <= arrived + self._ttft_s[job.tier] and now + job.service_s <= job.deadline:
            return None
        return Overloaded("hopeless", retry_after_s=1.0)


BASELINES: Mapping[str, type[Ordered]] = {
    "fcfs": Fcfs,
    "strict": Strict,
    "round robin": RoundRobin,
    "edf": Edf,
}

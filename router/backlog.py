"""The waiting jobs of one tenant in one tier, in the order in which it wants them.

The key of a job is `arrival + TTFT budget·(1 + level) + α·expected time`. With α = 0 that is earliest deadline first; a
large α gives shortest remaining time first. The level says how much service the conversation has had, see `level`.

A job that can't have its first token within the TTFT budget any more goes behind all that can. Under overload earliest
deadline first serves whoever is about to be late, so that soon everybody is; the late one has lost its first promise
anyway, and its deadline is usually far. It still goes before an idle slot, and at its last call before its turn
(`fair.py`).
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

from .averages import DrainRate
from .moments import Moments

MAX_LEVEL = 3
"""The lowest level, so that a long conversation waits for three budgets more at most."""


class Waiting(NamedTuple):
    """A queued job; the order is that of service. A tuple, since heaps compare many."""

    key: float
    """In seconds, see the module."""
    job: int
    cost: float
    on_time_until: float
    """When it must start to have its first token within its TTFT budget, in monotonic seconds."""
    last_call: float = math.inf
    """When it must start to end by its deadline, with some time to spare; then it goes before its turn."""

    def __deepcopy__(self, memo: object) -> Waiting:
        """Nothing changes it, so copies of a queue share it."""
        return self


def level(attained: float, slice_tokens: float) -> int:
    """Multi-level feedback: slices double, and a conversation sinks by one level with each that it has used up.

    So one that has had less than a slice is at level 0, less than three at 1, less than seven at 2.
    """
    return min(MAX_LEVEL, int(math.log2(1.0 + attained / slice_tokens)))


class Backlog:
    """Push, look, take: all in O(log n)."""

    def __init__(self) -> None:
        self.counter = 0.0
        """Service given so far, per weight; see `fair.py`."""
        self.weight = 1.0
        """The tenant's, when its last job came."""
        self.cost = 0.0
        """Sum of the costs of the jobs."""
        self.late_cost = 0.0
        """Of those among them that go last, as far as `sort_out` was told the time."""
        self.drain = DrainRate()
        """What the tenant is given while it waits, whether for slots or for its own limit."""
        self.late_drain = DrainRate()
        """What its late jobs are given while they wait, before their last call; under lasting overload that comes to
        nothing."""
        self._at = 0.0
        self._late_jobs: set[int] = set()
        self._jobs: dict[int, Waiting] = {}
        self._heap: list[Waiting] = []
        self._late: list[Waiting] = []
        self._turns = Moments(self._jobs)
        """When each job in the heap will be late."""

    def __len__(self) -> int:
        return len(self._jobs)

    def push(self, item: Waiting, now: float) -> None:
        """A job arrives."""
        self._pass(now)
        self._jobs[item.job] = item
        self.cost += item.cost
        heapq.heappush(self._heap, item)
        self._turns.add(item.on_time_until, item.job)

    @property
    def late(self) -> int:
        """How many go last."""
        return len(self._late_jobs)

    @property
    def late_from(self) -> float:
        """When the next of its jobs will be late; endless where all are, as far as `sort_out` was told the time."""
        return self._turns.next

    def __getitem__(self, job: int) -> Waiting:
        """One that waits."""
        return self._jobs[job]

    def first(self, now: float) -> Waiting:
        """Who is next; there must be one."""
        self.sort_out(now)
        for heap in (self._heap, self._late):
            while heap:
                if heap[0].job in self._jobs and (heap[0].job in self._late_jobs) == (heap is self._late):
                    return heap[0]
                heapq.heappop(heap)
        raise AssertionError("an empty backlog has no first job")

    def remove(self, job: int, now: float) -> Waiting:
        """A job leaves, served or not."""
        self._pass(now)
        item = self._jobs.pop(job)
        self.cost = self.cost - item.cost if self._jobs else 0.0
        if job in self._late_jobs:
            self._late_jobs.discard(job)
            self.late_cost = self.late_cost - item.cost if self._late_jobs else 0.0
        if not self._jobs:
            self._heap.clear()
            self._late.clear()
        elif len(self._heap) + len(self._late) > 4 * len(self._jobs) + 64:
            self._rebuild()  # most of their jobs have left
        return item

    def sort_out(self, now: float) -> None:
        """Time went by, and some are late now."""
        self._pass(now)
        for job in self._turns.past(now):
            item = self._jobs[job]
            heapq.heappush(self._late, item)
            self._late_jobs.add(job)
            self.late_cost += item.cost

    def served(self, item: Waiting, now: float) -> None:
        """One that had to wait has left for a slot."""
        self.drain.left(item.cost)
        if item.on_time_until < now < item.last_call:
            self.late_drain.left(item.cost)

    def _pass(self, now: float) -> None:
        if now > self._at:
            if self._jobs:
                self.drain.waited(now - self._at)
            if self._late_jobs:
                self.late_drain.waited(now - self._at)
            self._at = now

    def _rebuild(self) -> None:
        self._late = [item for item in self._jobs.values() if item.job in self._late_jobs]
        self._heap = [item for item in self._jobs.values() if item.job not in self._late_jobs]
        heapq.heapify(self._late)
        heapq.heapify(self._heap)

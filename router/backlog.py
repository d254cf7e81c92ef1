"""The waiting jobs of one tenant in one tier, in the order in which it wants them.

The key of a job is `arrival + TTFT budget·(1 + level) + α·expected time`. With α = 0 that is earliest deadline first; a
large α gives shortest remaining time first. The level says how much service the conversation has had, see `level`.

A job that can't have its first token within the TTFT budget any more goes behind all that can. Under overload earliest
deadline first serves whoever is about to be late, so that soon everybody is; the late one has lost its first promise
anyway, and its deadline is usually far. It still goes before an idle slot, and ends at its deadline at the latest.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

MAX_LEVEL = 3
"""The lowest level, so that a long conversation waits for three budgets more at most."""


@dataclass(frozen=True, slots=True, order=True)
class Waiting:
    """A queued job; the order is that of service."""

    key: float
    """In seconds, see the module."""
    job: int
    cost: float = field(compare=False)
    on_time_until: float = field(compare=False)
    """When it must start to have its first token within its TTFT budget, in monotonic seconds."""

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
        self.level_with_others = False
        """Whether the counter may be compared with those of the others who wait."""
        self.cost = 0.0
        """Sum of the costs of the jobs."""
        self._jobs: dict[int, Waiting] = {}
        self._heap: list[Waiting] = []
        self._late: list[Waiting] = []
        self._turns: list[tuple[float, int]] = []
        """When each job in the heap will be late."""

    def __len__(self) -> int:
        return len(self._jobs)

    def push(self, item: Waiting) -> None:
        """A job arrives."""
        self._jobs[item.job] = item
        self.cost += item.cost
        heapq.heappush(self._heap, item)
        heapq.heappush(self._turns, (item.on_time_until, item.job))

    def first(self, now: float) -> Waiting:
        """Who is next; there must be one."""
        self._sort_out(now)
        for heap in (self._heap, self._late):
            while heap:
                if self._holds(heap[0], heap is self._late, now):
                    return heap[0]
                heapq.heappop(heap)
        raise AssertionError("an empty backlog has no first job")

    def remove(self, job: int) -> Waiting:
        """A job leaves, served or not."""
        item = self._jobs.pop(job)
        self.cost = self.cost - item.cost if self._jobs else 0.0
        if not self._jobs:
            self._heap.clear()
            self._late.clear()
            self._turns.clear()
        elif len(self._turns) + len(self._late) > 2 * len(self._jobs) + 64:  # most of their jobs have left
            self._rebuild()
        return item

    def _sort_out(self, now: float) -> None:
        while self._turns and self._turns[0][0] < now:
            item = self._jobs.get(heapq.heappop(self._turns)[1])
            if item is not None:
                heapq.heappush(self._late, item)

    def _holds(self, item: Waiting, late: bool, now: float) -> bool:
        return item.job in self._jobs and late == (item.on_time_until < now)

    def _rebuild(self) -> None:
        late = {item.job for item in self._late}
        self._late = [item for item in self._jobs.values() if item.job in late]
        self._heap = [item for item in self._jobs.values() if item.job not in late]
        self._turns = [(item.on_time_until, item.job) for item in self._heap]
        for heap in (self._late, self._heap):
            heapq.heapify(heap)
        heapq.heapify(self._turns)

"""Fairness between the tenants of one tier: weighted virtual token counters.

After "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024, VTC): the eligible tenant with the smallest
counter is served, and a served cost moves its counter by cost ÷ weight. Two tenants that both wait all the time differ
in weighted service by at most 2·(largest cost ÷ weight), plus what running requests were misjudged by.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Waiting:
    """A queued job; the order is that of service inside a tenant."""

    key: float
    """Arrival + TTFT budget + α·expected remaining time, in seconds."""
    number: int
    job: int = field(compare=False)
    cost: float = field(compare=False)


@dataclass(slots=True)
class _Queue:
    counter: float = 0.0
    heap: list[Waiting] = field(default_factory=list)
    jobs: dict[int, Waiting] = field(default_factory=dict)


class FairQueue:
    """The waiting jobs of one tier."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._last_counter = 0.0
        self.cost = 0.0
        """Sum of the waiting jobs' costs."""

    def __len__(self) -> int:
        return sum(len(queue.jobs) for queue in self._queues.values())

    def waiting(self, tenant: str) -> int:
        """Jobs of a tenant that wait."""
        queue = self._queues.get(tenant)
        return len(queue.jobs) if queue else 0

    def push(self, tenant: str, item: Waiting) -> None:
        """A job arrives. A tenant that had none can't save up: it starts at the level of those who wait."""
        queue = self._queues.setdefault(tenant, _Queue())
        if not queue.jobs:
            levels = [other.counter for other in self._queues.values() if other.jobs]
            queue.counter = max(queue.counter, min(levels, default=self._last_counter))
            queue.heap.clear()
        queue.jobs[item.job] = item
        heapq.heappush(queue.heap, item)
        self.cost += item.cost

    def remove(self, tenant: str, job: int) -> None:
        """A job leaves unserved."""
        item = self._queues[tenant].jobs.pop(job)
        self._left(self._queues[tenant], item)

    def pop(self, weight: Callable[[str], float], eligible: Callable[[str], bool]) -> tuple[str, Waiting] | None:
        """The next job to serve, its cost charged to its tenant; None when no eligible tenant waits."""
        names = [name for name, queue in self._queues.items() if queue.jobs and eligible(name)]
        if not names:
            return None
        tenant = min(names, key=lambda name: (self._queues[name].counter, name))
        queue = self._queues[tenant]
        item = heapq.heappop(queue.heap)
        while item.job not in queue.jobs:
            item = heapq.heappop(queue.heap)
        del queue.jobs[item.job]
        queue.counter += item.cost / weight(tenant)
        self._left(queue, item)
        return tenant, item

    def has_eligible(self, eligible: Callable[[str], bool]) -> bool:
        """Whether `pop` would give a job."""
        return any(queue.jobs and eligible(name) for name, queue in self._queues.items())

    def correct(self, tenant: str, difference: float) -> None:
        """A served job cost this much more (or less) per weight than was charged."""
        if queue := self._queues.get(tenant):
            queue.counter += difference

    def newest(self) -> int | None:
        """The job that came last."""
        items = [item for queue in self._queues.values() for item in queue.jobs.values()]
        return max(items, key=lambda item: item.number).job if items else None

    def _left(self, queue: _Queue, item: Waiting) -> None:
        self.cost = max(0.0, self.cost - item.cost) if any(q.jobs for q in self._queues.values()) else 0.0
        if not queue.jobs:
            self._last_counter = queue.counter

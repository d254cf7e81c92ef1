"""When something is due for each job of a queue. Jobs leave at any time, and what was due for them with them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator


class Moments:
    """A heap, in which jobs that have left are passed over: all in O(log n)."""

    def __init__(self, jobs: Collection[int]) -> None:
        self._jobs = jobs
        """Those that are still there; the owner's, which changes."""
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float:
        """The first moment; endless where nothing is due."""
        while self._heap and self._heap[0][1] not in self._jobs:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def add(self, moment: float, job: int) -> None:
        """Something is due for a job that is there."""
        heapq.heappush(self._heap, (moment, job))
        if len(self._heap) > 2 * len(self._jobs) + 64:  # most of their jobs have left
            self._heap = [entry for entry in self._heap if entry[1] in self._jobs]
            heapq.heapify(self._heap)

    def past(self, now: float) -> Iterator[int]:
        """Takes out the jobs whose moment lies before this one, in order."""
        while self.next < now:
            yield heapq.heappop(self._heap)[1]

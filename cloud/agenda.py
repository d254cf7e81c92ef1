"""What happens by time alone: deadlines, and new sessions that begin to read ahead."""

from __future__ import annotations

from collections.abc import Collection
from heapq import heapify, heappop, heappush

_SLACK = 1024
"""Entries of ended sequences that may pile up before they are swept out."""


class Agenda:
    """Moments on the engine's clock and the sequences that they are for. What has ended by then is passed over."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int]] = []

    def add(self, moment: float, number: int) -> None:
        """Something is due for a sequence."""
        heappush(self._entries, (moment, number))

    def due(self, now: float) -> list[int]:
        """Takes out all whose moment has come, in order."""
        numbers = []
        while self._entries and self._entries[0][0] <= now:
            numbers.append(heappop(self._entries)[1])
        return numbers

    def next(self) -> float | None:
        """The first moment."""
        return self._entries[0][0] if self._entries else None

    def sweep(self, alive: Collection[int]) -> None:
        """Forgets entries of sequences that have ended, once there are many."""
        if len(self._entries) > 2 * len(alive) + _SLACK:
            self._entries = [entry for entry in self._entries if entry[1] in alive]
            heapify(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

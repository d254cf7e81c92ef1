"""How many attempts beyond the first there may be, so that failing workers are not also given more work. Pure.

In a window of ten seconds: a tenth of the requests that came, and as many as run. The second part lets the answers of a
worker that dies go on elsewhere, all of them, once; what fails again and again is soon past it.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
SHARE = 0.1
FLOOR = 10
"""At least so many, however little is asked."""
_BINS = 10


class RetryBudget:
    """Counts in bins of a second."""

    def __init__(self) -> None:
        self._bins: deque[list[int]] = deque(maxlen=_BINS)
        """Number of the bin, requests, retries."""

    def asked(self, now: float) -> None:
        """A request begins."""
        self._bin(now)[1] += 1

    def spend(self, now: float, running: int) -> bool:
        """Whether one more attempt may be made while so many answers run; it is counted if so."""
        used, allowed = self.counts(now, running)
        if used >= allowed:
            return False
        self._bin(now)[2] += 1
        return True

    def counts(self, now: float, running: int) -> tuple[int, int]:
        """Attempts beyond the first in the window, and how many there may be."""
        first = int(now / WINDOW_S * _BINS) - _BINS
        live = [one for one in self._bins if one[0] > first]
        requests, used = sum(one[1] for one in live), sum(one[2] for one in live)
        return used, int(SHARE * requests) + max(FLOOR, running)

    def _bin(self, now: float) -> list[int]:
        number = int(now / WINDOW_S * _BINS)
        if not self._bins or self._bins[-1][0] != number:
            self._bins.append([number, 0, 0])
        return self._bins[-1]

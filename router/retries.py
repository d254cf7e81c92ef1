"""How many attempts beyond the first there may be, so that failing workers are not also given more work. Pure.

In a window of ten seconds: a tenth of the requests that came, and as many as ran at once. The second part lets the
answers of a worker that dies go on elsewhere, all of them, once; what fails again and again is soon past it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_S = 10.0
SHARE = 0.1
FLOOR = 10
"""At least so many, however little is asked."""
_BINS = 10


@dataclass(slots=True)
class _Bin:
    number: int
    requests: int = 0
    retries: int = 0
    running: int = 0
    """At most."""


class RetryBudget:
    """Counts in bins of a second."""

    def __init__(self) -> None:
        self._bins: deque[_Bin] = deque(maxlen=_BINS)

    def asked(self, now: float, running: int) -> None:
        """A request begins while so many run, itself among them."""
        self._bin(now, running).requests += 1

    def spend(self, now: float, running: int) -> bool:
        """Whether one more attempt may be made; it is counted if so."""
        current = self._bin(now, running)
        used, allowed = self.counts(now)
        if used >= allowed:
            return False
        current.retries += 1
        return True

    def counts(self, now: float) -> tuple[int, int]:
        """Attempts beyond the first in the window, and how many there may be."""
        live = [one for one in self._bins if one.number > _number(now) - _BINS]
        requests, used = sum(one.requests for one in live), sum(one.retries for one in live)
        # The most that ran, not what runs: when a worker dies, its answers leave it one by one.
        return used, int(SHARE * requests) + max(FLOOR, *(one.running for one in live), 0)

    def _bin(self, now: float, running: int) -> _Bin:
        if not self._bins or self._bins[-1].number != _number(now):
            self._bins.append(_Bin(_number(now)))
        current = self._bins[-1]
        current.running = max(current.running, running)
        return current


def _number(now: float) -> int:
    return int(now / WINDOW_S * _BINS)

"""Whether a worker may be given requests, from how its last ones ended: a breaker per worker. Pure.

    up ── fails 3 times in a row, or 4 of 10 lately ──▶ ejected ── its time is over ──▶ trial ── one success ──▶ up
                                                           ▲                              │
                                                           └────────── one failure ───────┘

In trial it gets one request at a time. The time doubles with each ejection that no success comes between.
"""

from __future__ import annotations

from typing import Literal

_IN_A_ROW = 3
_SHARE = 0.4
"""Of the recent requests; more failures than that set it aside too."""
_AT_LEAST = 10
"""Requests before a share of them says anything."""
_FORGETS = 0.1
"""Weight of the newest request in the share."""
_EJECTED_S = (1.0, 30.0)
"""How long, first and at most."""


class Health:
    """Of one worker."""

    def __init__(self) -> None:
        self.ejections = 0
        """Times that it was set aside."""
        self.until = 0.0
        """When it may be tried again, in monotonic seconds."""
        self.trial = False
        """Whether it has been set aside, and has had no success since."""
        self._in_a_row = 0
        self._share = 0.0
        self._seen = 0
        self._doubled = 0

    def state(self, now: float) -> Literal["up", "ejected", "trial"]:
        """In a word."""
        if now < self.until:
            return "ejected"
        return "trial" if self.trial else "up"

    def succeeded(self) -> bool:
        """An answer came through; True when that ends a trial."""
        ended, self.trial = self.trial, False
        self._in_a_row = self._doubled = 0
        if ended:
            self._share, self._seen = 0.0, 0
        self._count(0.0)
        return ended

    def failed(self, now: float) -> bool:
        """A request failed; True when the worker is set aside for it. Failures while it is tell nothing new."""
        if now < self.until:
            return False
        self._in_a_row += 1
        self._count(1.0)
        often = self._seen >= _AT_LEAST and self._share > _SHARE
        if not (self.trial or often or self._in_a_row >= _IN_A_ROW):
            return False
        self.until = now + min(_EJECTED_S[0] * 2**self._doubled, _EJECTED_S[1])
        self.trial = True
        self._in_a_row = 0
        self._doubled += 1
        self.ejections += 1
        return True

    def restarted(self) -> None:
        """It is another process now, or none: what was does not count."""
        self.until, self.trial = 0.0, False
        self._in_a_row, self._share, self._seen = 0, 0.0, 0

    def _count(self, failure: float) -> None:
        self._seen += 1
        self._share += (failure - self._share) * _FORGETS

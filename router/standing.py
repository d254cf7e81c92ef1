"""How far a worker is to be relied on: failures, broken streams and silence set it aside for a while. Pure.

    up ── fails 3 times in a row, or 4 of 10 lately ──▶ ejected ── its time is over ──▶ trial ── one success ──▶ up
                                                           ▲                              │
                                                           └────────── one failure ───────┘

In trial it gets one request at a time. The time doubles with each ejection that no success comes between; for streams
that break again and again, with each break. Nothing here makes a worker unusable for good, and the registry uses those
that were set aside when there are no others.
"""

from __future__ import annotations

from typing import Literal

FAILURES = 3
"""So many failures in a row set a worker aside."""
ASIDE_S = (1.0, 30.0)
"""How long, first and at most; each time twice as long as the last."""
STEADY_S = 60.0
"""A stream that stood for so long is no flap when it breaks: the breaks before it are forgotten."""
LOOK_S = 0.25
"""How often it is seen whether a worker still speaks: as often as it has to send its load."""
_SHARE = 0.4
"""Of the recent requests; more failures than that set it aside too."""
_AT_LEAST = 10
"""Requests before a share of them says anything."""
_FORGETS = 0.1
"""Weight of the newest request in the share."""
_SILENT_LOOKS = 6
"""Looks in a row without a word, after which a worker gets nothing new. Counted in looks, not in seconds: a router that
had no processor for a while would take everybody for silent."""
_STUCK_LOOKS = 12
"""And after which its answers go on elsewhere. Keepalive alone would take 15 s, longer than the highest tier has."""


class Standing:
    """The record of one worker."""

    def __init__(self) -> None:
        self.ejections = 0
        """Times that it was set aside, for failures or for breaks."""
        self.aside_until = 0.0
        """When it may be tried again, in monotonic seconds."""
        self.trial = False
        """Whether it has been set aside for failures, and has had no success since."""
        self._failures = 0
        self._share = 0.0
        self._seen = 0
        self._doubled = 0
        self._up_since: float | None = None
        self._breaks = 0
        """Broken streams that had not stood for long."""
        self._words = 0
        self._quiet = 0

    def trusted(self, now: float) -> bool:
        """Whether it should get something new."""
        return now >= self.aside_until and not self.silent

    def state(self, now: float) -> Literal["up", "ejected", "silent", "trial"]:
        """In a word."""
        if now < self.aside_until:
            return "ejected"
        if self.silent:
            return "silent"
        return "trial" if self.trial else "up"

    @property
    def silent(self) -> bool:
        """Whether it has said nothing for a while."""
        return self._quiet >= _SILENT_LOOKS

    @property
    def stuck(self) -> bool:
        """Whether it has been silent for so long that its answers should go on elsewhere."""
        return self._quiet >= _STUCK_LOOKS

    def up(self, now: float) -> None:
        """A stream stands. The first break is a restart; who breaks again soon waits, each time longer."""
        if self._up_since is None:
            self._up_since = now
            self._quiet = 0
            if self._breaks > 1:
                self._set_aside(now, self._breaks - 2)

    def broke(self, now: float) -> None:
        """The stream is gone, and counts as a break; how requests ended on it says nothing of the next one."""
        self.aside_until, self.trial = 0.0, False
        self._failures, self._share, self._seen = 0, 0.0, 0
        if self._up_since is not None:
            self._breaks = 1 if now - self._up_since >= STEADY_S else self._breaks + 1
            self._up_since = None

    def succeeded(self) -> bool:
        """An answer came through; True when that ends a trial."""
        ended, self.trial = self.trial, False
        self._failures = self._doubled = 0
        if ended:
            self._share, self._seen = 0.0, 0
        self._count(0.0)
        return ended

    def failed(self, now: float) -> bool:
        """A request failed; True when the worker is set aside for it.

        Failures while it is tell nothing new, and those of a broken stream do not count: all its requests fail at once.
        """
        if self._up_since is None or now < self.aside_until:
            return False
        self._failures += 1
        self._count(1.0)
        often = self._seen >= _AT_LEAST and self._share > _SHARE
        if not (self.trial or often or self._failures >= FAILURES):
            return False
        self._set_aside(now, self._doubled)
        self.trial = True
        self._failures = 0
        self._doubled += 1
        return True

    def look(self, words: int) -> bool:
        """Takes note of how many messages have come in all; True when the worker fell silent or speaks again."""
        before = self.silent
        self._quiet = self._quiet + 1 if words == self._words and self._up_since is not None else 0
        self._words = words
        return before != self.silent

    def _set_aside(self, now: float, times: int) -> None:
        self.aside_until = now + min(ASIDE_S[0] * 2.0 ** min(times, 10), ASIDE_S[1])
        self.ejections += 1

    def _count(self, failure: float) -> None:
        self._seen += 1
        self._share += (failure - self._share) * _FORGETS

"""How far a worker is to be relied on: failures, broken streams and silence set it aside for a while.

Pure; the clock is an argument. Nothing here makes a worker unusable for good, and the registry uses those that were
set aside when there are no others.
"""

from __future__ import annotations

FAILURES = 3
"""So many failures in a row set a worker aside."""
ASIDE_S = (1.0, 30.0)
"""How long, first and at most; each time twice as long as the last."""
STEADY_S = 60.0
"""A stream that stood for so long is no flap when it breaks: the breaks before it are forgotten."""
LOOK_S = 0.25
"""How often it is seen whether a worker still speaks: as often as it has to send its load."""
_SILENT_LOOKS = 6
"""Looks in a row without a word, after which a worker gets nothing new. Counted in looks, not in seconds: a router that
had no processor for a while would take everybody for silent."""
_STUCK_LOOKS = 12
"""And after which its answers go on elsewhere. Keepalive alone would take 15 s, longer than the highest tier has."""


class Standing:
    """The record of one worker."""

    def __init__(self) -> None:
        self.aside_until = 0.0
        self._failures = 0
        self._times_aside = 0
        self._up_since: float | None = None
        self._breaks = 0
        """Broken streams that had not stood for long."""
        self._words = 0
        self._quiet = 0

    def trusted(self, now: float) -> bool:
        """Whether it should get something new."""
        return now >= self.aside_until and not self.silent

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
                self.aside_until = now + _pause_s(self._breaks - 2)

    def broke(self, now: float) -> None:
        """The stream is gone; what failed on it was one failure, and counts as a break."""
        self._failures, self.aside_until = 0, 0.0
        if self._up_since is not None:
            self._breaks = 1 if now - self._up_since >= STEADY_S else self._breaks + 1
            self._up_since = None

    def succeeded(self) -> None:
        """An answer came through."""
        self._failures = self._times_aside = 0

    def failed(self, now: float) -> bool:
        """A request failed on a stream that stands; True when the worker is set aside for that."""
        if self._up_since is None or now < self.aside_until:
            return False
        self._failures += 1
        if self._failures < FAILURES:
            return False
        self._failures = 0
        self.aside_until = now + _pause_s(self._times_aside)
        self._times_aside += 1
        return True

    def look(self, words: int) -> bool:
        """Takes note of how many messages have come in all; True when the worker fell silent or speaks again."""
        before = self.silent
        self._quiet = self._quiet + 1 if words == self._words and self._up_since is not None else 0
        self._words = words
        return before != self.silent


def _pause_s(times: int) -> float:
    return min(ASIDE_S[0] * 2.0 ** min(times, 10), ASIDE_S[1])

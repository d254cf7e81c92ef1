"""How many tokens of prompts a step may read while others wait for their next token.

Whoever decodes waits for the whole step, so prompts are read in chunks that prolong it by a bounded share: by 0.6 of
what the step would take without them, or by the number of those who read per one who decodes, if that is more: then all
get the same share of the time. So a long prompt makes eight streams wait 1.6 times as long for a token as they would,
and sixteen prompts that come together don't crawl because one of them was read first.

How long a step takes without reading, and what a read token adds, is measured as the steps go by. Pure: durations come
in.
"""

from __future__ import annotations

_SHARE = 0.6
"""Leaves the 99th percentile room below twice the undisturbed wait."""

_LEAST = 8
"""Tokens; a prompt must get on. Beside 8 streams of the starter, fewer take as long: attention reads the same keys."""

_UNTIL_MEASURED = 32
"""Steps that read, after which one that doesn't is measured anew: it costs a prompt 3 % of its time."""

_RECENT = 0.2
"""Weight of the latest step."""


class Pace:
    """Measured times of steps, and what follows for the next one."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}
        """Seconds of steps that read nothing, by the magnitude of the number who decode."""
        self._read = self._added_s = 0.0
        """Tokens that were read, and the seconds that they added; what is long past counts less."""
        self._readings = 0
        """Steps in a row that read."""

    def observe(self, deciders: int, read: int, seconds: float) -> None:
        """In a step `deciders` sequences decoded or verified, and `read` tokens were read for others."""
        if not read:
            self._readings = 0
            magnitude = deciders.bit_length()
            before = self._plain.get(magnitude, seconds)
            self._plain[magnitude] = before + _RECENT * (seconds - before)
            return
        self._readings += 1
        added_s = max(0.0, seconds - (self.plain_s(deciders or 1) or 0.0))
        self._read = self._read * (1 - _RECENT) + read
        self._added_s = self._added_s * (1 - _RECENT) + added_s

    def tokens(self, deciders: int, readers_per_decider: float) -> int:
        """What the next step may read while others decode; 0 lets a step without it be measured."""
        if self._readings >= _UNTIL_MEASURED:
            return 0
        plain = self.plain_s(deciders)
        if not plain or not self._added_s:
            return _LEAST
        return max(_LEAST, int(max(_SHARE, readers_per_decider) * plain * self._read / self._added_s))

    def plain_s(self, deciders: int) -> float | None:
        """Seconds of a step in which so many decode and nobody reads, or the next fewer; None before any."""
        magnitude = deciders.bit_length()
        return next((self._plain[m] for m in range(magnitude, 0, -1) if m in self._plain), None)

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

_LEAST = 16
"""Tokens; a prompt must get on."""

_UNTIL_MEASURED = 32
"""Steps that read, after which one that doesn't is measured anew: it costs a prompt 3 % of its time."""

_RECENT = 0.2
"""Weight of the latest step."""


class Pace:
    """Measured times of steps, and what follows for the next one."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}
        """Seconds of steps that read nothing, by the magnitude of their rows."""
        self._per_token = 0.0
        """Seconds that a read token adds to a step."""
        self._readings = 0
        """Steps in a row that read."""

    def observe(self, rows: int, read: int, seconds: float) -> None:
        """A step ran `rows` rows for sequences that decode, and `read` for others."""
        magnitude = rows.bit_length()
        if not read:
            self._readings = 0
            self._plain[magnitude] = _mean(self._plain.get(magnitude), seconds)
            return
        self._readings += 1
        added = seconds - self._plain.get(magnitude, 0.0) if rows else seconds
        self._per_token = _mean(self._per_token or None, max(0.0, added) / read)

    def tokens(self, rows: int, readers_per_decoder: float) -> int:
        """What the next step may read beside `rows` rows that decode; 0 lets it be measured without."""
        plain = self._plain.get(rows.bit_length())
        if plain is None or self._readings >= _UNTIL_MEASURED:
            return 0
        if not self._per_token:
            return _LEAST
        return max(_LEAST, int(max(_SHARE, readers_per_decoder) * plain / self._per_token))


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _RECENT * (value - mean)

"""How much of the pool each tier asks for: the jobs of it that run or wait for a slot, as a part of the slots.

Little's law makes that the work it brings, as long as little of it waits; where more waits it is an overestimate, which
is to err on the right side for those below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_HALF_LIFE_S = 4.0
"""A burst is remembered, since the next one may be as large. In simulated overloads that begin at once 4 to 6 of 6,400
that were taken in were lost with 2, 4 or 8 s, and 11 without any memory."""


class Demand:
    """By tier, highest first."""

    def __init__(self, tiers: Sequence[str]) -> None:
        self._usual = dict.fromkeys(tiers, 0.0)
        self._now = dict.fromkeys(tiers, 0.0)
        self._at = 0.0

    def passed(self, now: float, jobs: Mapping[str, int], slots: int) -> None:
        """So many jobs of each tier ran or waited since the last call."""
        keep = 0.5 ** ((now - self._at) / _HALF_LIFE_S)
        self._at = now
        for tier, count in jobs.items():
            part = self._now[tier] = count / max(1, slots)
            self._usual[tier] = keep * self._usual[tier] + (1.0 - keep) * part

    def above(self, tier: str) -> float:
        """What the tiers above this one ask for, now or usually, whichever is more; can be more than the whole."""
        now = usual = 0.0
        for other, part in self._now.items():
            if other == tier:
                break
            now += part
            usual += self._usual[other]
        return max(now, usual)

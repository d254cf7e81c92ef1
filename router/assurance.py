"""What a tier can be sure of, if times get worse: its share, or more while the tiers above it ask for little.

A measured rate is of the past. Who was taken in by it while little was asked of the tiers above is lost when they fill
the pool; so it must be in time even if they come to ask for several times as much (`docs/decisions/030-assurance.md`).
"""

from __future__ import annotations

from .demand import Demand
from .drains import Drains
from .jobs import TierRule
from .lags import Lags

_SWELL, _MOST = 3.0, 0.5
"""The tiers above may come to ask for so many times what they do, and for the rest of the pool in any case: all may
begin to ask in the same second."""
_SWELL_OF_PROMISED = 1.5
"""A promise rests on rates as they were when it was given, and it takes a change of them to keep its job out."""


class Assurance:
    """From lags, rates and demand as they are."""

    def __init__(self, lags: Lags, drains: Drains, demand: Demand) -> None:
        self._lags = lags
        self._drains = drains
        self._demand = demand

    def given_s(self, tier: TierRule, cost: float, *, promised: bool = False) -> float:
        """Time until a tier has surely been given this much; 0 where no rate is known, or it has no share.

        `promised` is for a job that comes back to its place.
        """
        if not tier.min_share:
            return 0.0
        above = self._demand.above(tier.name)
        part = 1.0 - _SWELL_OF_PROMISED * above if promised else min(_MOST, 1.0 - _SWELL * above)
        return self._drains.pool_s(max(0.0, cost - self._lags.of(tier.name))) / max(tier.min_share, part)

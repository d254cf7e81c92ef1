"""What a tier can be sure of, if times get worse: its share, or more while the tiers above it ask for little.

A measured rate is of the past. Who was taken in by it while little was asked of the tiers above is lost when they fill
the pool; so it must be in time even if they come to ask for several times as much (`docs/decisions/030-assurance.md`).
"""

from __future__ import annotations

from .jobs import TierRule

_SWELL, _MOST = 3.0, 0.5
"""The tiers above may come to ask for so many times what they do, and for the rest of the pool in any case: all may
begin to ask in the same second."""
_SWELL_OF_PROMISED = 1.5
"""A promise rests on rates as they were when it was given, and it takes a change of them to keep its job out."""


def sure_part(tier: TierRule, above: float, *, comes_back: bool = False) -> float:
    """Of what the pool does, where the tiers above ask for so much of it; `comes_back` is for a job that comes back to
    its place."""
    left = 1.0 - _SWELL_OF_PROMISED * above if comes_back else min(_MOST, 1.0 - _SWELL * above)
    return max(tier.min_share, left)

"""Which tier is served next: strict order, with a guaranteed share by lag.

At each dispatch of cost ĉ the lag of every tier that waits grows by its share m of ĉ; that of the served tier falls by
ĉ, never below zero. A tier whose queue is empty has none; one whose tenants are all at their own limits keeps at most
c_max, the largest cost. A tier whose lag has come to the cost of its next job is served before its turn, if there are
several the one with the largest lag; else the highest that waits is. While a job of the highest tier presses (see
`scheduler.py`) that takes a lag of c_max, so that bursts are not cut short by what lower tiers will get anyway.

Both bounds follow from the sum L of the lags of n tiers whose shares add up to M < 1:

- A dispatch that begins while all lags are below c_max, whomever it serves, leaves L < (n + M)·c_max; so jobs at their
  last call may go before their turn then. One that begins otherwise is forced: it serves a lag of at least ĉ, so the
  whole ĉ is taken from L and at most M·ĉ added: L falls. So L, and with it each lag, stays below (n + M)·c_max.
- A tier that waits gets there in c_max/m, plus the dispatch that takes it over. From then on each dispatch until its
  own is forced and takes (1 − M)·ĉ from L, which begins below (n + M)·c_max and ends at no less than c_max, its own
  lag. So others are given at most c_max·(1/m + 1 + (n + M − 1)/(1 − M)) before it is served.

The clamp at zero makes this hold: without it a tier that was served beyond its share would have to pay for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .jobs import TierRule


def lag_bound(tiers: Sequence[TierRule], largest_cost: float) -> float:
    """What no lag reaches, in tokens."""
    return (len(tiers) + sum(tier.min_share for tier in tiers)) * largest_cost


def wait_bound(tiers: Sequence[TierRule], tier: TierRule, largest_cost: float) -> float:
    """Cost that others are given at most while a tier waits with a tenant below its limit; infinite without a share."""
    if not tier.min_share:
        return float("inf")
    total = sum(other.min_share for other in tiers)
    return largest_cost * (1 / tier.min_share + 1 + (len(tiers) + total - 1) / (1 - total))


class Lags:
    """The service that each tier is owed, in tokens."""

    def __init__(self, tiers: Sequence[TierRule], largest_cost: float) -> None:
        self._c_max = largest_cost
        self._lags = {tier.name: 0.0 for tier in tiers}
        self._shares: dict[str, float] = {}
        self.set_shares(tiers)

    def set_shares(self, tiers: Sequence[TierRule]) -> None:
        """Other shares for the same tiers."""
        self._shares = {tier.name: tier.min_share for tier in tiers}

    def all(self) -> Mapping[str, float]:
        """By tier; a copy."""
        return dict(self._lags)

    def of(self, tier: str) -> float:
        """What a tier is owed."""
        return self._lags[tier]

    def next(self, waiting: Sequence[str], due: Callable[[str], float], pressing: bool = False) -> str:
        """Who is to be served of these, which are in order and at least one.

        `due` says what the next job of a tier costs; where a job of the highest is `pressing`, lags may grow to c_max.
        """
        owed = [tier for tier in waiting if self._lags[tier] > 0.0]
        owed = [tier for tier in owed if self._lags[tier] >= (self._c_max if pressing else due(tier))]
        return max(owed, key=self._lags.__getitem__) if owed else waiting[0]

    def forces(self, waiting: Sequence[str]) -> bool:
        """Whether who is next of these can't be left to wait for another one."""
        return any(self._lags[tier] >= self._c_max for tier in waiting)

    def served(self, tier: str, cost: float, waiting: Sequence[str]) -> None:
        """One of those that waited was given this much, at most the largest cost."""
        for name, lag in self._lags.items():
            self._lags[name] = lag + self._shares[name] * cost if name in waiting else min(lag, self._c_max)
        self._lags[tier] = max(self._lags[tier] - cost, 0.0)

    def clear(self, tier: str) -> None:
        """Nothing of this tier waits any more."""
        self._lags[tier] = 0.0

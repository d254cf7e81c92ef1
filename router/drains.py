"""How fast a tier drains: its service while it waits for slots, with what higher tiers take and what shares give in it.

A tenant has a rate of its own beside it (`backlog.py`), with what others and its own limit leave to it. The pool's is
what all of them end while no slot is free.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .averages import DrainRate

_POOL_HALF_LIFE_S = 10.0
"""What workers can do changes less than what a tier is left of it."""


class Drains:
    """The rates of the tiers, and of the pool."""

    def __init__(self, tiers: Sequence[str]) -> None:
        self._drains = {tier: DrainRate() for tier in tiers}
        self._pool = DrainRate(_POOL_HALF_LIFE_S)
        self._at: float | None = None
        self._waited: frozenset[str] = frozenset()
        """Tiers that waited for slots until now."""

    def passed(self, now: float, waiting: Collection[str], *, full: bool = False) -> None:
        """Time went by while these tiers waited for slots, or none was free; idle slots say nothing about speed."""
        since = now if self._at is None else self._at
        self._at = now
        if now > since:
            self._waited = frozenset(waiting)
            for tier in waiting:
                self._drains[tier].waited(now - since)
            if full:
                self._pool.waited(now - since)

    def drained(self, tier: str, cost: float) -> None:
        """A job that had to wait got a slot; if only its tenant's own limit kept it, that tells nothing of the tier."""
        if tier in self._waited:
            self._drains[tier].left(cost)

    def ended(self, cost: float) -> None:
        """A job ended when no slot was free."""
        self._pool.left(cost)

    def pool_s(self, cost: float) -> float:
        """In which all tiers together are given this much; 0 where nothing was measured."""
        return self._pool.seconds(cost)

    def seconds(self, tier: str, cost: float, wary: bool = False) -> float:
        """Until a tier that waits for slots has been given this much; 0 where nothing was measured."""
        return self._drains[tier].seconds(cost, wary)

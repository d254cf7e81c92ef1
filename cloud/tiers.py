"""What the engine needs to know of a tier: its place among the others, and by when its requests should be done."""

from __future__ import annotations

from collections.abc import Sequence as Many

from ..common.config import TierConfig

_USUAL = "standard"


class Tiers:
    """The configuration's tiers, highest first."""

    def __init__(self, tiers: Many[TierConfig]) -> None:
        assert tiers
        self._places = {tier.name: place for place, tier in enumerate(tiers)}
        self._tiers = tuple(tiers)

    def named(self, name: str) -> str:
        """The tier that a request is served in: its own; `standard`, or the first, where it names none.

        A name that this worker does not know is served last. Its router's file is newer than its own.
        """
        if not name:
            return _USUAL if _USUAL in self._places else self._tiers[0].name
        return name if name in self._places else self._tiers[-1].name

    def place(self, name: str) -> int:
        """0 for the highest."""
        return self._places[self.named(name)]

    def deadline_s(self, name: str) -> float:
        """Seconds in which a request that says nothing else should be done."""
        return self._tiers[self.place(name)].deadline_s

"""What a section of `bench engine` says: a figure beside what was asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .kit import PairedRatio


@dataclass(frozen=True, slots=True)
class Setting:
    """How to measure."""

    model: Path
    """The model where a section does not make its own."""
    threads: int
    pairs: int
    quick: bool = False
    """Everything short, to see that it runs; the figures mean nothing."""

    def few(self, full: int, quick: int) -> int:
        """A length or a number."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Claim:
    """One figure."""

    what: str
    value: float
    aim: float
    at_least: bool
    """Whether the aim is a floor; else it is a ceiling."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What it was made of, as plain data."""

    @classmethod
    def of(cls, what: str, ratio: PairedRatio, aim: float, *, at_least: bool, **facts: object) -> Claim:
        """The median of pairs, with its spread."""
        return cls(what, ratio.median, aim, at_least, ratio.facts() | facts)

    @property
    def met(self) -> bool:
        """Whether the value is as asked."""
        return self.value >= self.aim if self.at_least else self.value <= self.aim

    @property
    def margin(self) -> float:
        """How many times better than asked; 1 is just met."""
        best, asked = (self.value, self.aim) if self.at_least else (self.aim, self.value)
        return best / asked if asked > 0 else float("inf")

    def data(self) -> dict[str, object]:
        """For the result's file."""
        aim = {"at_least" if self.at_least else "at_most": self.aim}
        return {"what": self.what, "value": self.value, **aim, "met": self.met, **self.facts}

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        spread = self.facts.get("spread")
        between = f" ({spread[0]:.3f} to {spread[1]:.3f})" if isinstance(spread, list) else ""
        return f"{'met   ' if self.met else 'missed'} {self.value:8.3f}{between}, {sign} {self.aim:g}: {self.what}"

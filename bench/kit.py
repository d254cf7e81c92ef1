"""How a claim is measured: two things in turn in one run, the median of their ratios, the spread beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_PAIRS = 5


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """How many times `ours` is of `theirs`, pair by pair."""

    ratios: tuple[float, ...]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The claim."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest ratio of any pair."""
        return min(self.ratios), max(self.ratios)

    def facts(self) -> dict[str, object]:
        """As plain data, with the raw values."""
        low, high = self.spread
        return {
            "ratio": self.median,
            "spread": [low, high],
            "pairs": len(self.ratios),
            "ours": list(self.ours),
            "theirs": list(self.theirs),
        }

    def __str__(self) -> str:
        low, high = self.spread
        return f"{self.median:.3f} (from {low:.3f} to {high:.3f}, {len(self.ratios)} pairs)"


def paired_ratio(
    ours: Callable[[], float], theirs: Callable[[], float], *, pairs: int = MIN_PAIRS, warmups: int = 1
) -> PairedRatio:
    """Runs both in turn, changing who goes first from pair to pair; each returns its figure (a rate, or seconds).

    What slows the machine for a while slows both halves of a pair, so ratios are steady where absolute times are not.
    Raises ValueError for fewer than five pairs.
    """
    if pairs < MIN_PAIRS:
        raise ValueError(f"{pairs} pairs tell nothing about the spread; run at least {MIN_PAIRS}")
    for _ in range(warmups):
        ours()
        theirs()
    values: list[tuple[float, float]] = []
    for index in range(pairs):
        if index % 2:
            second = theirs()
            values.append((ours(), second))
        else:
            first = ours()
            values.append((first, theirs()))
    return PairedRatio(tuple(a / b for a, b in values), tuple(a for a, _ in values), tuple(b for _, b in values))


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of them lie, interpolated. ValueError when empty."""
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    # This form of the line never leaves the two neighbours, whatever the rounding.
    return ordered[low] if low == place else ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def trimmed(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Values, in the order of time, without the first and last `share` of them: ramp-up and run-out."""
    cut = int(len(values) * share)
    return list(values[cut : len(values) - cut])


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95 and p99 of the trimmed values, and how many there were before trimming."""
    kept = trimmed(values)
    return {f"p{p}": percentile(kept, p / 100) for p in (50, 90, 95, 99)} | {"count": float(len(values))}

"""Figures that are learned as they come, in bounded memory. Pure: time comes as an argument."""

from __future__ import annotations

from collections import deque
from statistics import median


class RunningMedian:
    """The median of the last values."""

    def __init__(self, first: float, window: int = 64) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._median = first

    @property
    def value(self) -> float:
        """The median, or the first guess when nothing was seen."""
        return self._median

    def add(self, value: float) -> None:
        """One more value."""
        self._values.append(value)
        self._median = median(self._values)


class RunningQuantile:
    """What a part of the last values, by weight, does not exceed."""

    def __init__(self, first: float, part: float, window: int = 64) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=window)
        self._part = part
        self.value = first
        """The first guess when nothing was seen."""

    def add(self, value: float, weight: float) -> None:
        """One more value."""
        self._values.append((value, weight))
        left = self._part * sum(each for _, each in self._values)
        for known, each in sorted(self._values):
            left -= each
            if left <= 0:
                self.value = known
                break


class Decayed:
    """A mean that forgets: a value's weight halves with each `half_life` values."""

    def __init__(self, first: float, half_life: float = 16.0) -> None:
        self.value = first
        self._keep = 0.5 ** (1.0 / half_life)
        self._seen = 0

    def add(self, value: float) -> None:
        """One more value; the first one replaces the guess."""
        keep = self._keep if self._seen else 0.0
        self._seen += 1
        self.value = keep * self.value + (1 - keep) * value


class DecayedLine:
    """y ≈ a + b·x by least squares over values whose weight halves with each `half_life` of them; a and b at least 0.

    Where the x hardly differ no slope can be told, and the line is flat through the mean.
    """

    def __init__(self, first: float, half_life: float = 64.0) -> None:
        self._first = first
        self._keep = 0.5 ** (1.0 / half_life)
        self._weight = 0.0
        self._x = 0.0
        self._y = 0.0
        self._xx = 0.0
        """Weighted sum of squares about the mean of x."""
        self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        """One more value, finite."""
        kept = self._keep * self._weight
        self._weight = kept + 1.0
        dx, dy = x - self._x, y - self._y
        self._x += dx / self._weight
        self._y += dy / self._weight
        # Sums about the mean, as Welford has them: plain sums of squares lose their digits where x is large and even.
        shift = kept / self._weight
        self._xx = self._keep * self._xx + dx * dx * shift
        self._xy = self._keep * self._xy + dx * dy * shift

    def at(self, x: float) -> float:
        """The line's value there; the first guess when nothing was seen."""
        if not self._weight:
            return self._first
        spread = self._xx / self._weight
        slope = max(0.0, self._xy / self._xx) if spread > 1e-3 * (1.0 + self._x * self._x) else 0.0
        if self._y < slope * self._x:  # a line through the origin then, by the mean
            slope = self._y / self._x
        return max(0.0, self._y + slope * (x - self._x))


_LONG_GAP = 3.0
"""Mean gaps that a silence may last before it tells something."""


class DrainRate:
    """Cost that leaves per second while work is waiting.

    A time's weight halves each `half_life_s` of waiting, but the last `least` that left count in any case: of a slow
    queue a few seconds tell nothing. With 10 s and 16, what a tier was given before an overload let in too many for
    long: of those taken in 0.8 % were lost in simulation with 3 s and 4 instead of 2 %, at the same goodput.
    """

    def __init__(self, half_life_s: float = 3.0, least: float = 4.0) -> None:
        self._half_life_s = half_life_s
        self._least = least
        self._left = 0.0
        """How many did, by weight."""
        self._cost = 0.0
        self._time_s = 0.0
        self._silent_s = 0.0
        """Of waiting, since the last one left."""

    @property
    def stuck(self) -> bool:
        """Whether nothing has left in a second of waiting or more."""
        return self._time_s >= 1.0 and not self._cost

    def seconds(self, cost: float, wary: bool = False) -> float:
        """Until this much has left; 0, which is no estimate, before a second of waiting or any leaving was seen.

        Who is `wary` takes a silence for the beginning of slower times: gaps come to a third of it at least. One in
        twenty gaps of a Poisson process is so long by chance.
        """
        if self._time_s < 1.0 or not self._cost:
            return 0.0
        time_s = max(self._time_s, self._left * self._silent_s / _LONG_GAP) if wary else self._time_s
        return cost * time_s / self._cost

    def left(self, cost: float) -> None:
        """One job of this cost did."""
        self._left += 1.0
        self._cost += cost
        self._silent_s = 0.0

    def waited(self, seconds: float) -> None:
        """So much of the time since the last call had work waiting."""
        if self._left > self._least:
            keep = max(0.5 ** (seconds / self._half_life_s), self._least / self._left)
            self._left *= keep
            self._cost *= keep
            self._time_s *= keep
        self._time_s += seconds
        self._silent_s += seconds

"""The calibration that an edge directory carries: from a unit's features to Pr[it is the cloud's], and from a bound to
the threshold that keeps it. What the edge evaluates; `fitting.py` makes it, `calibration_file.py` keeps it. Pure.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..common.types import Digests, Sampling
from .risk import Step, loosest

_CACHED_BOUNDS = 256


@dataclass(frozen=True, slots=True)
class SamplingClass:
    """Requests that share a calibration. Bias, penalties and filters belong to no class, but greedy ignores filters."""

    name: str
    above: float
    """Temperatures are above this…"""
    up_to: float
    """…and at most this; both 0 for greedy."""

    def holds(self, sampling: Sampling) -> bool:
        """Whether a request of this sampling belongs here."""
        if sampling.adjusted:
            return False
        if sampling.greedy:
            return self.up_to == 0.0
        plain = sampling.top_p == 1.0 and sampling.top_k == 0 and sampling.min_p == 0.0
        return plain and self.above < sampling.temperature <= self.up_to


CLASSES = (
    SamplingClass("greedy", 0.0, 0.0),
    SamplingClass("T<=0.5", 0.0, 0.5),
    SamplingClass("T<=0.9", 0.5, 0.9),
    SamplingClass("T<=1.3", 0.9, 1.3),
)
"""What can be calibrated."""


@dataclass(frozen=True, slots=True)
class ScoreMap:
    """A logistic map of the features, and if that fits better an isotonic one behind it."""

    intercept: float
    weights: tuple[float, ...]
    """One per feature, in log-odds."""
    knots: tuple[tuple[float, float], ...] = ()
    """Log-odds (ascending) and the probability (never descending) that they stand for; linear in between."""

    def log_odds(self, values: Sequence[float]) -> float:
        """The logistic part."""
        return self.intercept + math.fsum(w * v for w, v in zip(self.weights, values, strict=True))

    def score(self, values: Sequence[float]) -> float:
        """Pr[the unit is the cloud's], between 0 and 1, never descending in `log_odds`."""
        odds = self.log_odds(values)
        return self._between(odds) if self.knots else sigmoid(odds)

    def _between(self, odds: float) -> float:
        knots = self.knots
        right = bisect_right(knots, odds, key=lambda knot: knot[0])
        if right in (0, len(knots)):
            return knots[0 if right == 0 else -1][1]
        (x0, y0), (x1, y1) = knots[right - 1], knots[right]
        # Rounding must not carry a point past its right neighbour's value.
        return min(y1, y0 + (y1 - y0) * (odds - x0) / (x1 - x0))


def sigmoid(odds: float) -> float:
    """1 / (1 + e^−odds) without overflow."""
    if odds >= 0:
        return 1.0 / (1.0 + math.exp(-odds))
    weight = math.exp(max(odds, -700.0))
    return weight / (1.0 + weight)


@dataclass(frozen=True, slots=True)
class ClassCalibration:
    """What was measured for one sampling class."""

    sampling: SamplingClass
    map: ScoreMap
    walk: tuple[Step, ...]
    """Candidate thresholds from strict to loose."""
    fitted: int
    """Prompts that the map was fitted on."""
    tested: int
    """Prompts that the walk counts over; others than those of the fit."""
    log_loss: float
    """Of the map over the test's units, in nats."""
    ece: float
    """Expected calibration error over the test's units, ten bins of equal mass."""
    _found: dict[tuple[float, float], float | None] = field(default_factory=dict, compare=False, repr=False)

    def threshold(self, delta: float, epsilon: float) -> float | None:
        """The score from which on a unit may be shown alone; None when none may. See `risk.loosest`."""
        place = delta, epsilon
        if place not in self._found:
            if len(self._found) >= _CACHED_BOUNDS:  # Requests name bounds as they like.
                self._found.clear()
            self._found[place] = loosest(self.walk, self.tested, delta, epsilon)
        return self._found[place]


@dataclass(frozen=True, slots=True)
class Calibration:
    """All classes of one pair."""

    edge: Digests
    """Of the edge directory; the tokenizer and the template are the cloud's as well."""
    cloud_model: str
    """Digest of the cloud model that gave the labels."""
    epsilon: float
    """Probability that a threshold does not keep its bound, over the draw of the prompts."""
    prompts: int
    prompts_sha256: str
    max_tokens: int
    """Length of the answers at most, in tokens."""
    classes: tuple[ClassCalibration, ...]
    digest: str = ""
    """SHA-256 of the file."""

    def of(self, sampling: Sampling) -> ClassCalibration | None:
        """What holds for requests of this sampling; None where nothing was measured."""
        return next((found for found in self.classes if found.sampling.holds(sampling)), None)

"""Whether a unit may be shown without asking. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from ..common.types import Quality
from .units import Unit


class Decision(Enum):
    """What becomes of a unit."""

    ALONE = "alone"
    """Shown; nobody is asked."""
    ASK = "ask"
    """The cloud says how much of it stands."""
    HAND_OVER = "hand_over"
    """As ASK, and the cloud finishes the answer."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The plain threshold that the artifact carries; it stands for one bound on the share of wrong units."""

    min_unit_probability: float
    """From a unit's score on, it may be shown alone."""
    delta: float = 0.05
    """The share of units shown alone that differed from the cloud's when the threshold was chosen."""

    def decide(self, unit: Unit, quality: Quality, delta: float) -> Decision:
        """ALONE or ASK for one unit under the request's quality and bound `delta`."""
        if quality is Quality.EDGE:
            return Decision.ALONE
        if quality is Quality.EXACT or delta <= 0:
            return Decision.ASK
        return Decision.ALONE if score(unit) >= self.threshold(delta) else Decision.ASK

    def threshold(self, delta: float) -> float:
        """The score that a bound asks for. A looser bound than the one measured gains nothing; a tighter one closes
        the distance to certainty in proportion, for want of a calibration."""
        return 1.0 - (1.0 - self.min_unit_probability) * min(1.0, delta / self.delta)


def score(unit: Unit) -> float:
    """The edge model's own probability that all ids of the unit are right: the product over its tokens."""
    return math.prod(unit.probabilities)

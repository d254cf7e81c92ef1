"""Whether a unit may be shown without asking. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..common.types import Quality, Sampling
from .calibration import Calibration
from .features import features
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
    """What one answer's units are held to."""

    in_force: Callable[[], Calibration | None]
    """What was measured on the pair as it is now; None where nothing was."""
    sampling: Sampling
    """The answer's."""

    def decide(self, unit: Unit, quality: Quality, delta: float) -> Decision:
        """ALONE or ASK for one unit under the request's quality and bound `delta`. What is uncalibrated asks."""
        if quality is Quality.EDGE:
            return Decision.ALONE
        if quality is Quality.EXACT or delta <= 0 or unit.cut:
            return Decision.ASK
        calibration = self.in_force()
        measured = calibration and calibration.of(self.sampling)
        if not calibration or not measured:
            return Decision.ASK
        threshold = measured.threshold(delta, calibration.epsilon)
        trusted = threshold is not None and measured.map.score(features(unit)) >= threshold
        return Decision.ALONE if trusted else Decision.ASK

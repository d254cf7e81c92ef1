"""The drift alarm: is the share of wrong tokens still at most δ? Tests that may be looked at after every label. Pure.

A label says that of n tokens w were wrong; it enters as x = (w − δ n) / max(16, n), so that a whole unit weighs 1 and
tokens of one unit, which fail together, count once. While E[x | past] ≤ 0, every factor 1 + λx with 0 ≤ λ < 1/δ has
mean ≤ 1 (an e-value), and so have their products.

*Alarm.* A product that began long ago has shrunk to nothing when drift sets in. So a share 1/(t(t+1)) of the stake is
put on label t as if nothing had been before it: the sum is an e-process still, and exceeds 1/ε ever with probability at
most ε (Ville), while a change at label t is found after about (2 ln t + ln 1/ε)/g labels, g being the bet's growth
(cf. Shin, Ramdas, Rinaldo 2023, "E-detectors", section 3).

*Proof.* The same bets with the sign turned, against "the share is δ or more". It starts anew whenever it falls below
its stake (Page's CUSUM), so that labels from the time of the drift don't have to be outweighed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .units import UNIT_TOKENS

ALARM_EPSILON = 0.01
"""Probability of ever raising an alarm while nothing drifts."""

PROOF_EPSILON = 0.01
"""While the share is δ or more, a proof takes at least 1/PROOF_EPSILON labels on average."""

_STAKES = (0.5, 0.25, 0.125, 0.0625)
_PROOF_STAKES = (0.9, 0.5, 0.25, 0.1)
"""Bets as shares of what one label can lose: large ones for sudden changes, small ones for slow ones."""


class Standing(Enum):
    """Whether units may be shown alone at all."""

    GOOD = "good"
    UNPROVEN = "unproven"
    """The allowance is used up, or was never earned."""
    DRIFTED = "drifted"
    """Labels have shown that the share of wrong tokens exceeds δ."""


@dataclass(slots=True)
class Watch:
    """Alarm and proof for one bound, and what follows from them."""

    delta: float
    """Share of wrong tokens that is agreed."""
    standing: Standing = Standing.GOOD
    labels: int = 0
    """Since the standing last changed."""
    stakes: list[float] = field(default_factory=lambda: [0.0] * len(_STAKES))
    """What each bet is worth: of the alarm while the standing is good, else of the proof."""

    @property
    def proven(self) -> bool:
        """Whether the share has been shown to be below δ since the standing was lost."""
        return self.standing is not Standing.GOOD and sum(self.stakes) / len(self.stakes) >= 1 / PROOF_EPSILON

    def shown(self, wrong: int, tokens: int) -> None:
        """A label of what was shown alone. It says nothing of the time after the standing was lost."""
        if self.standing is Standing.GOOD:
            self._watch(self._excess(wrong, tokens))

    def withheld(self, drafted: int, stands: int) -> None:
        """A label of a unit that the score trusted and the cloud was asked about all the same.

        Behind the first id that doesn't stand nothing is known. Against trust that is left out, for trust it counts as
        wrong: tokens of a unit fail together.
        """
        if self.standing is not Standing.GOOD:
            self._prove(self._excess(drafted - stands, drafted))
        elif stands < drafted:
            self._watch(self._excess(1, stands + 1))
        else:
            self._watch(self._excess(0, drafted))

    def turn(self, standing: Standing) -> None:
        """Another standing; its test begins anew."""
        self.standing = standing
        self.labels = 0
        self.stakes = [0.0] * len(_STAKES)

    def _excess(self, wrong: int, tokens: int) -> float:
        return (wrong - self.delta * tokens) / max(UNIT_TOKENS, tokens)

    def _watch(self, excess: float) -> None:
        self.labels += 1
        fresh = 1.0 / (self.labels * (self.labels + 1))
        bets = zip(self.stakes, _STAKES, strict=True)
        self.stakes = [(worth + fresh) * (1.0 + stake / self.delta * excess) for worth, stake in bets]
        if sum(self.stakes) / len(self.stakes) >= 1 / ALARM_EPSILON:
            self.turn(Standing.DRIFTED)

    def _prove(self, excess: float) -> None:
        self.labels += 1
        room = max(1.0 - self.delta, 0.01)
        bets = zip(self.stakes, _PROOF_STAKES, strict=True)
        self.stakes = [max(worth, 1.0) * (1.0 - stake / room * excess) for worth, stake in bets]

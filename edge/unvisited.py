"""How many tokens of unvisited answers can be wrong, from the few answers that a private coin had audited. Pure.

Remainder j of an answer has n_j tokens that no visit labelled, w_j of them wrong: any number, by any drift; nothing is
independent and no rate is steady. After it was shown, a coin has it audited (ξ_j = 1) with probability π_j, which was
fixed before the coin fell. For a scale κ > 0 let θ_j solve

    1 − exp(−κ n_j) = π_j · (1 − exp(−θ_j n_j)).

Then E exp(κ w_j − θ_j ξ_j w_j) ≤ 1 for every w_j in [0, n_j], because its logarithm is convex in w_j, and 0 at both
ends. The product over j is a nonnegative supermartingale; by Ville's inequality, with probability 1 − ε and at all
times at once,

    Σ w_j ≤ (Σ θ_j ξ_j w_j + ln(1/ε)) / κ.

θ_j/κ is the weight of an audited wrong token: 1/π_j as κ n_j goes to 0. This is the line-crossing form (Howard, Ramdas,
McAuliffe, Sekhon 2020, "Time-uniform Chernoff bounds via nonnegative supermartingales", theorem 1) of a bet against
each outcome (Waudby-Smith, Ramdas 2023, "Estimating means of bounded random variables by betting"); the betting
intervals themselves are for a mean that stays, and drift is what we guard against. Several scales share ε.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

EPSILON = 0.05
"""The bound may fail with this probability, over the whole life of an account."""

_SCALES: tuple[float, ...] = tuple(2.0 ** (-k / 2) for k in range(8, 29))
"""κ per token: from answers of a few tokens that are nearly all audited to 500 tokens audited at 3 %."""

_CONFIDENCE = math.log(len(_SCALES) / EPSILON)


@dataclass(slots=True)
class Unvisited:
    """The remainders whose audit was left to a coin."""

    tokens: int = 0
    """In all remainders together."""
    awaited: int = 0
    """Audits whose labels have not come; each counts as wholly wrong until then."""
    bound: float = 0.0
    """At most so many of the tokens are wrong."""
    costs: list[float] = field(default_factory=lambda: [0.0] * len(_SCALES))
    """Σ θ_j ξ_j w_j for each scale."""

    def foreseen(self, tokens: int, probability: float) -> float:
        """The bound that labels give now by those scales that such a coin can serve: what leaving remainders of this
        length to it costs before they have been seen to be wrong. Known before the coin falls."""
        served = zip(_weights(tokens, probability), self.costs, _SCALES, strict=True)
        return min(
            ((cost + _CONFIDENCE) / scale for weight, cost, scale in served if weight is not None), default=math.inf
        )

    def leave(self, tokens: int, probability: float, picked: bool) -> None:
        """A remainder whose coin has fallen. The bound grows by its tokens at most: that is the worst they can be."""
        for k, weight in enumerate(_weights(tokens, probability)):
            if weight is None:
                self.costs[k] += _SCALES[k] * tokens
            elif picked:
                self.costs[k] += weight * tokens
        self.tokens += tokens
        self.awaited += picked
        self.bound = min(self.bound + tokens, self._limit())

    def told(self, tokens: int, probability: float, wrong: int) -> None:
        """The labels of a remainder that was picked."""
        for k, weight in enumerate(_weights(tokens, probability)):
            if weight is not None:
                self.costs[k] -= weight * (tokens - wrong)
        self.awaited -= 1
        self.bound = min(self.bound, self._limit())

    def lost(self) -> None:
        """The labels of a remainder that was picked will never come: it stays wholly wrong, at its full weight."""
        self.awaited -= 1

    def _limit(self) -> float:
        return min((cost + _CONFIDENCE) / scale for cost, scale in zip(self.costs, _SCALES, strict=True))


@lru_cache(maxsize=4096)
def _weights(tokens: int, probability: float) -> tuple[float | None, ...]:
    """θ for each scale; None where the coin is too rare for so long a remainder, which then counts as wholly wrong."""
    weights: list[float | None] = []
    for scale in _SCALES:
        left = 1.0 + math.expm1(-scale * tokens) / probability
        # Near 0 the weight of one audit grows without bound while the scale gains nothing.
        weights.append(-math.log(left) / tokens if left > 0.05 else None)
    return tuple(weights)

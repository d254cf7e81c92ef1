"""From which score on units may be shown alone so that their risk stays below a bound: Learn then Test. Pure.

The risk of a threshold is the share of the units at or above it that differ from the cloud's, averaged over the prompts
that have such a unit. Units of one prompt depend on each other, so a test counts one unit per prompt, drawn at random:
its outcome is a Bernoulli variable whose mean is that very risk, and the binomial tail is an exact p-value for "the
risk is above δ". Thresholds are tested from strict to loose and the first that is not rejected ends the walk, so that
all tests together err with probability ε at most, without a correction for their number (Angelopoulos, Bates, Candès,
Jordan, Lei, "Learn then Test", 2021, section 2.3, fixed-sequence testing). What may be tested, in which order and from
where on is settled on other prompts than those that are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_PROMPTS = 100
"""With fewer, a walk would begin where chance decides."""

_HEADROOM = 3
"""A walk begins where there are this many times the prompts that would pass without one wrong unit. With the bare
number a single wrong unit, however rare they are, stops the walk at its first step."""


@dataclass(frozen=True, slots=True)
class Step:
    """One candidate threshold."""

    threshold: float
    reach: float
    """Share of the fit's prompts that have a unit at or above it."""
    prompts: int
    """Prompts of the test that have one; one unit of each was drawn."""
    wrong: int
    """Drawn units that differ from the cloud's."""


def p_value(prompts: int, wrong: int, delta: float) -> float:
    """Pr[at most `wrong` of `prompts` differ] where each does with probability `delta`, exactly."""
    if not 0.0 < delta < 1.0:
        return 0.0 if delta >= 1.0 and wrong < prompts else 1.0
    if wrong < prompts * delta:
        return _tail(prompts, wrong, delta)
    return 1.0 - _tail(prompts, prompts - wrong - 1, 1.0 - delta)


def _tail(count: int, most: int, chance: float) -> float:
    """Pr[Binomial(count, chance) ≤ most] for `most` below the mean, where the terms fall towards 0."""
    if most < 0:
        return 0.0
    ways = math.lgamma(count + 1) - math.lgamma(most + 1) - math.lgamma(count - most + 1)
    term = total = math.exp(ways + most * math.log(chance) + (count - most) * math.log1p(-chance))
    odds_against = (1.0 - chance) / chance
    for k in range(most, 0, -1):
        term *= k / (count - k + 1) * odds_against
        total += term
        if term < total * 1e-18:
            break
    return total


def fewest_prompts(delta: float, epsilon: float) -> int:
    """Prompts that are enough to pass if no unit differs: (1 − δ)^n ≤ ε."""
    return math.ceil(math.log(epsilon) / math.log1p(-delta))


def begins_at(tested: int, delta: float, epsilon: float) -> int:
    """Expected prompts with a unit to draw from which a walk begins, out of `tested` ones."""
    return max(LEAST_PROMPTS, min(_HEADROOM * fewest_prompts(delta, epsilon), tested // 2))


def loosest(walk: Sequence[Step], tested: int, delta: float, epsilon: float) -> float | None:
    """The loosest threshold whose risk is at most `delta`, with confidence 1 − `epsilon`; None when nothing is trusted.

    `walk` goes from strict to loose, `tested` counts the test's prompts.
    """
    if not 0.0 < delta < 1.0:
        return walk[-1].threshold if walk and delta >= 1.0 else None
    found, begin = None, begins_at(tested, delta, epsilon)
    for step in walk:
        if step.reach * tested < begin:
            continue
        if p_value(step.prompts, step.wrong, delta) > epsilon:
            break
        found = step.threshold
    return found

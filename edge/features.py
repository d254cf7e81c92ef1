"""What a unit's trust is judged by: eight numbers from one pass over the logits of its tokens. Pure."""

from __future__ import annotations

import math

from .units import UNIT_TOKENS, Unit

FEATURES = ("product", "least", "quarter", "entropy_max", "entropy_mean", "margin_least", "length", "ends")
"""Names of what `features` gives, in order."""

_CLIP = 16.0
"""Of log-odds: a float32 probability of 1 − 6e-8 is the last below 1, and its log-odds are 16.6."""


def features(unit: Unit) -> tuple[float, ...]:
    """The unit's numbers, all finite, in the order of FEATURES.

    `product` (the model's own probability that all ids are right), `least` and `quarter` (the least and the lower
    quartile of its tokens' probabilities) as log-odds, entropies in nats, the least margin, the length as a share of
    the longest unit, and 1 where the answer ends.
    """
    ordered = sorted(unit.probabilities)
    product = math.fsum(math.log(max(p, 1e-30)) for p in ordered)
    count = len(ordered)
    return (
        _odds_of_log(product),
        _odds(ordered[0]),
        _odds(ordered[(count - 1) // 4]),
        max(unit.entropies),
        math.fsum(unit.entropies) / count,
        min(unit.margins),
        count / UNIT_TOKENS,
        float(unit.ends),
    )


def _odds(probability: float) -> float:
    """Natural log-odds, clipped."""
    if not 0.0 < probability < 1.0:
        return -_CLIP if probability <= 0.0 else _CLIP
    return max(-_CLIP, min(_CLIP, math.log(probability) - math.log1p(-probability)))


def _odds_of_log(logarithm: float) -> float:
    """Clipped log-odds of a probability that is given as its logarithm."""
    rest = -math.expm1(logarithm)
    return _CLIP if rest <= 0.0 else max(-_CLIP, min(_CLIP, logarithm - math.log(rest)))

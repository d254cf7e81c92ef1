"""Curves of quality against cost from what each prompt gave: points, interpolation, areas, bootstrap. Pure.

A sweep is an array [points, prompts, FIELDS] of counts. A point of a curve is a ratio of their sums over prompts, and
all intervals come from drawing prompts anew, since the units of one prompt depend on each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FIELDS = (
    "answers", "tokens", "passes", "positions", "units", "alone", "unvisited",
    "exact", "same", "same_tokens", "good_tokens",
)  # fmt: skip
"""Of one answer at one point. `exact`: it is the truth; `same`: it is the cloud's whole text; `same_tokens`: what the
cloud would choose there; `good_tokens`: at least 0.3 as probable to the cloud as its choice. The other way round from
regret, so that more is better in all."""

QUALITIES = {
    "exact_match": ("exact", "answers"),
    "same_answer": ("same", "answers"),
    "same_tokens": ("same_tokens", "tokens"),
    "without_regret": ("good_tokens", "tokens"),
}
COSTS = {"passes": ("passes", "tokens"), "positions": ("positions", "tokens")}

_STEPS = 200
"""Of the grid on which areas are summed: equal steps of cost from none to that of always asking."""
_SHOWN = 10
"""Every so many steps, the curves themselves are told."""
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Sweeps:
    """The same prompts under three policies; the first point of each asks always, the last one never."""

    score: Floats
    random: Floats
    """Averaged over seeds."""
    oracle: Floats

    def of(self, prompts: npt.NDArray[np.bool_]) -> Sweeps:
        """Some of the prompts."""
        return Sweeps(self.score[:, prompts], self.random[:, prompts], self.oracle[:, prompts])


def shares(sums: Floats, ratio: tuple[str, str]) -> Floats:
    """One field by another, of arrays whose last axis is FIELDS."""
    above, below = (sums[..., FIELDS.index(name)] for name in ratio)
    found: Floats = above / below
    return found


def interpolated(cost: Floats, quality: Floats, places: Floats) -> Floats:
    """The quality at each place of cost, on straight lines between points; points of one cost count by their mean."""
    distinct, which = np.unique(cost, return_inverse=True)
    mean = np.bincount(which, quality) / np.bincount(which)
    return np.interp(places, distinct, mean)


def mean_height(heights: Floats) -> float:
    """Mean of a curve that is given at equal steps, its ends included (trapezoids)."""
    return float((heights[:-1] + heights[1:]).sum() / (2 * (len(heights) - 1)))


def compare(sweeps: Sweeps, quality: str, cost: str, seed: int = 0) -> dict[str, object]:
    """How far the score's curve lies above random asking, with 95 % intervals, each place by itself.

    Areas are normalized: 1 is the whole rectangle from never to always asking, in cost and in quality. Where always
    asking gains no quality there is no such rectangle, and they are None. The grid's costs are per token.
    """
    prompts = sweeps.score.shape[1]
    whole = _heights(sweeps, np.ones(prompts), quality, cost)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=_RESAMPLES)
    resampled = [_heights(sweeps, weights.astype(np.float64), quality, cost) for weights in drawn]
    most = _cost_of_asking(sweeps, np.ones(prompts), cost)
    never, always = float(whole["random"][0]), float(whole["random"][-1])
    return {
        "never_asking": never,
        "always_asking": always,
        "cost_of_always_asking": most,
        "area": _areas(whole, resampled, always - never),
    } | _differences(whole, resampled, most)


def _cost_of_asking(sweeps: Sweeps, weights: Floats, cost: str) -> float:
    """That of always asking, per token."""
    return float(shares(weights @ sweeps.score[0], COSTS[cost]))


def _heights(sweeps: Sweeps, weights: Floats, quality: str, cost: str) -> dict[str, Floats]:
    """Quality of each policy on the grid, [steps + 1], with the prompts so weighted."""
    places = np.linspace(0.0, _cost_of_asking(sweeps, weights, cost), _STEPS + 1)
    found = {}
    for name in ("score", "random", "oracle"):
        sums = np.einsum("p,kpf->kf", weights, getattr(sweeps, name))
        found[name] = interpolated(shares(sums, COSTS[cost]), shares(sums, QUALITIES[quality]), places)
    return found


def _areas(
    whole: Mapping[str, Floats], resampled: Sequence[Mapping[str, Floats]], span: float
) -> dict[str, object] | None:
    if span <= 0:
        return None
    chord = np.linspace(whole["random"][0], whole["random"][-1], _STEPS + 1)
    score, oracle = (mean_height(whole[name] - whole["random"]) / span for name in ("score", "oracle"))
    drawn = [mean_height(each["score"] - each["random"]) / span for each in resampled]
    ceilings = [mean_height(each["oracle"] - each["random"]) / span for each in resampled]
    ratios = [area / ceiling for area, ceiling in zip(drawn, ceilings, strict=True) if ceiling > 0]
    return {
        "score_over_random": score,
        "interval": _interval(drawn),
        "score_over_chord": mean_height(whole["score"] - chord) / span,
        "random_over_chord": mean_height(whole["random"] - chord) / span,
        "oracle_over_random": oracle,
        "share_of_oracle": score / oracle if oracle > 0 else None,
        "share_interval": _interval(ratios) if ratios else None,
    }


def _differences(
    whole: Mapping[str, Floats], resampled: Sequence[Mapping[str, Floats]], most: float
) -> dict[str, object]:
    """Between the ends, where all policies are one."""
    drawn = np.array([each["score"] - each["random"] for each in resampled])
    grid = []
    for step in range(_SHOWN, _STEPS, _SHOWN):
        low, high = _interval(drawn[:, step])
        at = {name: float(heights[step]) for name, heights in whole.items()}
        grid.append({"cost": most * step / _STEPS, **at, "above": at["score"] - at["random"], "low": low, "high": high})
    return {
        "above_random_everywhere": all(row["above"] > 0 for row in grid),
        "places": len(grid),
        "places_with_interval_above_zero": sum(row["low"] > 0 for row in grid),
        "places_with_interval_below_zero": sum(row["high"] < 0 for row in grid),
        "grid": grid,
    }


def _interval(values: Sequence[float] | Floats) -> list[float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]

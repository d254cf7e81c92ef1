"""Fits what a calibration holds: the map on one part of the prompts, the walk and the figures on the other. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .calibration import ClassCalibration, SamplingClass, ScoreMap
from .labelling import Labelled, Units
from .risk import LEAST_PROMPTS, Step

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_FIT_SHARE = 1 / 3
"""Of the prompts. Nine coefficients need few of them; what limits the thresholds is the test: a bound of 2 % at a true
risk of 1 % is found with probability 0.9 by 1,300 test prompts."""

LEAST_TOTAL = math.ceil(LEAST_PROMPTS / (1 - _FIT_SHARE)) + 1
"""Prompts below which no threshold can be tested at all."""

_RIDGE = 1.0
"""On standardized weights, in units of observations: keeps the fit finite where the classes can be separated."""
_NEWTON_STEPS = 50
_CANDIDATES = 48
_FOLDS = 5
_BINS = 10


def split(prompts: Sequence[Units]) -> tuple[Sequence[Units], Sequence[Units]]:
    """The prompts of the fit and of the test. Their order must say nothing about them."""
    border = round(len(prompts) * _FIT_SHARE)
    return prompts[:border], prompts[border:]


def fit_class(sampling: SamplingClass, prompts: Sequence[Units], seed: int) -> ClassCalibration:
    """What one sampling class's labels say; `seed` draws the test's units."""
    fit_part, test_part = split(prompts)
    fitted = fit_map(fit_part)
    fit, test = scored(fitted, fit_part), scored(fitted, test_part)
    return ClassCalibration(
        sampling=sampling,
        map=fitted,
        walk=walk(fit, test, np.random.default_rng(seed)),
        fitted=len(fit_part),
        tested=len(test_part),
        log_loss=log_loss(test.scores, test.same),
        ece=calibration_error(test.scores, test.same),
    )


@dataclass(frozen=True, slots=True)
class Scored:
    """The units of several prompts, flat; arrays of one length."""

    prompts: npt.NDArray[np.int64]
    """Number of each unit's prompt, ascending."""
    scores: Floats
    same: Bools


def scored(fitted: ScoreMap, prompts: Sequence[Units]) -> Scored:
    """Every unit of the prompts, which are numbered from 0."""
    units = [unit for prompt in prompts for unit in prompt]
    numbers = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])
    return Scored(numbers, np.array([fitted.score(unit.features) for unit in units]), _same(units))


def walk(fit: Scored, test: Scored, rng: np.random.Generator) -> tuple[Step, ...]:
    """Candidate thresholds with one unit of each test prompt drawn at each; see `risk.py`.

    Each unit gets a random rank once, and a threshold draws the first in rank that passes: uniform at each threshold,
    and the same unit for as long as the loosening brings none of a better rank.
    """
    order = np.lexsort((rng.random(len(test.scores)), test.prompts))
    numbers, scores, same = test.prompts[order], test.scores[order], test.same[order]
    steps = []
    for threshold in candidates(fit.scores):
        passed = np.flatnonzero(scores >= threshold)
        first = passed[np.diff(numbers[passed], prepend=-1) > 0]
        reach = len(np.unique(fit.prompts[fit.scores >= threshold])) / len(np.unique(fit.prompts))
        steps.append(Step(float(threshold), round(reach, 6), len(first), int((~same[first]).sum())))
    return tuple(steps)


def candidates(scores: Floats) -> Floats:
    """Thresholds from strict to loose: quantiles of the fit's scores, at equal steps."""
    distinct = np.unique(scores)[::-1]
    places = np.linspace(0, len(distinct) - 1, min(_CANDIDATES, len(distinct)))
    chosen: Floats = distinct[np.unique(places.round().astype(int))]
    return chosen


def fit_map(prompts: Sequence[Units]) -> ScoreMap:
    """The logistic map, with an isotonic one behind it if that has the lower log loss on held-out folds of prompts."""
    plain, bent = [0.0, 0.0]
    for fold in range(_FOLDS):
        kept = [unit for i, prompt in enumerate(prompts) for unit in prompt if i % _FOLDS != fold]
        out = [unit for i, prompt in enumerate(prompts) for unit in prompt if i % _FOLDS == fold]
        logistic = fit_logistic(kept)
        isotonic = fit_isotonic(logistic, kept)
        plain += _summed_loss(logistic, out)
        bent += _summed_loss(isotonic, out)
    logistic = fit_logistic([unit for prompt in prompts for unit in prompt])
    return fit_isotonic(logistic, [unit for prompt in prompts for unit in prompt]) if bent < plain else logistic


def fit_logistic(units: Sequence[Labelled]) -> ScoreMap:
    """Logistic regression with a ridge, by Newton's method (iteratively reweighted least squares)."""
    raw, same = np.array([unit.features for unit in units], np.float64), _same(units).astype(np.float64)
    mean, scale = raw.mean(0), raw.std(0)
    scale[scale < 1e-9] = 1.0
    x = np.column_stack([np.ones(len(raw)), (raw - mean) / scale])
    ridge = np.full(x.shape[1], _RIDGE)
    # The intercept's own keeps it finite where all units are alike; it moves it by less than half an observation would.
    ridge[0] = 0.1
    weights = np.zeros(x.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (same - p) - ridge * weights
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + np.diag(ridge), gradient)
        weights += _damped(x, same, ridge, weights, step)
        if np.abs(step).max() < 1e-8:
            break
    folded = weights[1:] / scale
    return ScoreMap(float(weights[0] - folded @ mean), tuple(folded.tolist()))


def _damped(x: Floats, same: Floats, ridge: Floats, weights: Floats, step: Floats) -> Floats:
    """The step, halved until the penalized likelihood does not fall: far from the optimum a whole one may overshoot."""

    def loss(w: Floats) -> float:
        odds = x @ w
        return float(np.logaddexp(0.0, odds).sum() - same @ odds + 0.5 * ridge @ w**2)

    before = loss(weights)
    for _ in range(30):
        if loss(weights + step) <= before + 1e-12:
            break
        step = step / 2
    return step


def fit_isotonic(logistic: ScoreMap, units: Sequence[Labelled]) -> ScoreMap:
    """`logistic` with the never-descending map of its log-odds that fits best, by pooling adjacent violators.

    Each pool stands at the mean of its log-odds. Values keep half an observation's distance from 0 and 1.
    """
    odds = np.array([logistic.log_odds(unit.features) for unit in units])
    order = np.argsort(odds, kind="stable")
    pools: list[tuple[float, float, float]] = []
    for place, same in zip(odds[order].tolist(), _same(units)[order].tolist(), strict=True):
        count, total, places = 1.0, float(same), place
        while pools and (pools[-1][1] * count >= total * pools[-1][0] or pools[-1][2] / pools[-1][0] == place):
            last = pools.pop()
            count, total, places = count + last[0], total + last[1], places + last[2]
        pools.append((count, total, places))
    least = 0.5 / len(units)
    knots = [(places / count, min(1 - least, max(least, total / count))) for count, total, places in pools]
    return ScoreMap(logistic.intercept, logistic.weights, tuple(knots))


def log_loss(scores: Floats, same: Bools) -> float:
    """Mean negative log-likelihood, in nats."""
    p = np.clip(scores, 1e-12, 1 - 1e-12)
    return float(-np.where(same, np.log(p), np.log1p(-p)).mean())


def calibration_error(scores: Floats, same: Bools) -> float:
    """Expected calibration error: mean distance of score and outcome over bins of equal mass."""
    return float(sum(abs(score - outcome) * share for score, outcome, share in reliability(scores, same)))


def reliability(scores: Floats, same: Bools) -> list[tuple[float, float, float]]:
    """Per bin of equal mass: mean score, share of units that are the cloud's, share of all units."""
    order = np.argsort(scores, kind="stable")
    bins = [part for part in np.array_split(order, _BINS) if len(part)]
    return [(float(scores[b].mean()), float(same[b].mean()), len(b) / len(scores)) for b in bins]


def _summed_loss(fitted: ScoreMap, units: Sequence[Labelled]) -> float:
    if not units:
        return 0.0
    return len(units) * log_loss(np.array([fitted.score(unit.features) for unit in units]), _same(units))


def _same(units: Sequence[Labelled]) -> Bools:
    return np.array([unit.same for unit in units], np.bool_)


def _sigmoid(odds: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * odds))

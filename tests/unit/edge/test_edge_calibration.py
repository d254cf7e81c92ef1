"""Features, map, fit, file and trust: from a unit to the decision to show it alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.errors import ModelDirError
from tiermesh.common.types import Digests, ModelInfo, Quality, Sampling
from tiermesh.edge.calibration import CLASSES, Calibration, ClassCalibration, ScoreMap, sigmoid
from tiermesh.edge.calibration_file import FILE, calibration_text, read_calibration, write_calibration
from tiermesh.edge.features import FEATURES, features
from tiermesh.edge.fitting import fit_class, fit_isotonic, fit_logistic, fit_map, log_loss, reliability
from tiermesh.edge.labelling import Labelled, Units
from tiermesh.edge.pairing import Pairing
from tiermesh.edge.risk import Step
from tiermesh.edge.trust import Decision, Trust
from tiermesh.edge.units import Unit

EDGE = Digests("e" * 64, "t" * 64, "c" * 64)
POOL = ModelInfo("m", Digests("a" * 64, "t" * 64, "c" * 64), 400, 310)
MAP = ScoreMap(0.0, (1.0, *(0.0,) * (len(FEATURES) - 1)))
"""The score is the product of a unit's probabilities."""
WALK = (Step(0.95, 0.5, 500, 2), Step(0.9, 0.9, 900, 25), Step(0.2, 1.0, 1000, 300))
GREEDY = ClassCalibration(CLASSES[0], MAP, WALK, 500, 1000, 0.3, 0.02)
CALIBRATION = Calibration(EDGE, POOL.digests.model, 0.05, 1500, "f" * 64, 96, (GREEDY,))

chances = st.sampled_from([0.0, 1.0, 1e-30, 1 - 1e-16]) | st.floats(0, 1)


def unit_of(*probabilities: float, ends: bool = False) -> Unit:
    count = len(probabilities)
    return Unit((5,) * count, probabilities, probabilities, (0.1,) * count, ends)


@given(st.lists(chances, min_size=1, max_size=16), st.booleans())
def test_features_are_finite_whatever_the_model_says(probabilities: list[float], ends: bool) -> None:
    values = features(unit_of(*probabilities, ends=ends))
    assert len(values) == len(FEATURES)
    assert all(map(math.isfinite, values))
    named = dict(zip(FEATURES, values, strict=True))
    assert named["product"] <= named["least"] + 1e-6 <= named["quarter"] + 2e-6
    assert (named["length"], named["ends"]) == (len(probabilities) / 16, float(ends))


def test_the_product_counts_every_token() -> None:
    named = dict(zip(FEATURES, features(unit_of(0.9, 0.8, 0.5)), strict=True))
    assert sigmoid(named["product"]) == pytest.approx(0.36)
    assert sigmoid(named["least"]) == pytest.approx(0.5)


@given(st.floats(-1e6, 1e6))
def test_the_sigmoid_never_overflows(odds: float) -> None:
    assert 0 <= sigmoid(odds) <= 1
    assert sigmoid(odds) + sigmoid(-odds) == pytest.approx(1)


def population(prompts: int, seed: int, bend: Callable[[float], float] = lambda odds: odds) -> list[Units]:
    """Prompts whose units are the cloud's with a probability that two of the features tell."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(prompts):
        units = []
        for _ in range(rng.integers(1, 5)):
            values = rng.normal(size=len(FEATURES))
            right = sigmoid(bend(1.5 + 2.0 * values[0] - 1.0 * values[3]))
            units.append(Labelled(tuple(values.tolist()), 8, bool(rng.random() < right)))
        drawn.append(tuple(units))
    return drawn


def flat(prompts: list[Units]) -> list[Labelled]:
    return [unit for prompt in prompts for unit in prompt]


def loss(fitted: ScoreMap, prompts: list[Units]) -> float:
    units = flat(prompts)
    return log_loss(np.array([fitted.score(u.features) for u in units]), np.array([u.same for u in units]))


def test_the_fit_finds_the_weights() -> None:
    fitted = fit_logistic(flat(population(4000, 1)))
    assert fitted.intercept == pytest.approx(1.5, abs=0.15)
    expected = [2.0, 0, 0, -1.0, 0, 0, 0, 0]
    assert fitted.weights == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("same", [True, False])
def test_units_that_are_all_alike_give_a_finite_map(same: bool) -> None:
    units = [Labelled((1.0,) * len(FEATURES), 1, same)] * 50
    for fitted in (fit_logistic(units), fit_isotonic(fit_logistic(units), units)):
        assert 0 < fitted.score(units[0].features) < 1
        assert (fitted.score(units[0].features) > 0.9) is same


def test_units_that_can_be_told_apart_give_a_finite_map() -> None:
    units = [Labelled((float(x), *(0.0,) * (len(FEATURES) - 1)), 1, x > 0) for x in range(-20, 21)]
    fitted = fit_logistic(units)
    assert all(map(math.isfinite, (fitted.intercept, *fitted.weights)))
    assert fitted.score(units[-1].features) > 0.95 > 0.05 > fitted.score(units[0].features)


@given(
    st.lists(st.tuples(st.sampled_from([-2.0, -1.0, 0.5]) | st.floats(-9, 9), st.booleans()), min_size=2, max_size=60)
)
@settings(max_examples=60, deadline=None)
def test_an_isotonic_map_never_descends(points: list[tuple[float, bool]]) -> None:
    units = [Labelled((x, *(0.0,) * (len(FEATURES) - 1)), 1, same) for x, same in points]
    fitted = fit_isotonic(MAP, units)
    grid = [fitted.score((x, *(0.0,) * (len(FEATURES) - 1))) for x in np.linspace(-12, 12, 200)]
    assert all(0 < score < 1 for score in grid)
    assert grid == sorted(grid)


def test_the_better_map_on_held_out_prompts_is_taken() -> None:
    """Where the truth bends, the isotonic map is better and is taken; where it does not, it is not."""
    bent = population(1500, 2, bend=lambda odds: 4.0 if odds > 1 else -1.0)
    assert fit_map(bent).knots
    assert loss(fit_map(bent), population(1500, 3, bend=lambda odds: 4.0 if odds > 1 else -1.0)) < loss(
        fit_logistic(flat(bent)), population(1500, 3, bend=lambda odds: 4.0 if odds > 1 else -1.0)
    )
    assert not fit_map(population(300, 4)).knots


def test_a_class_is_fitted_and_tested_on_other_prompts() -> None:
    prompts = population(900, 5)
    measured = fit_class(CLASSES[0], prompts, seed=1)
    assert (measured.fitted, measured.tested) == (300, 600)
    assert measured.map == fit_map(prompts[:300])
    assert all(step.prompts <= 600 for step in measured.walk)
    assert measured.walk[-1].prompts > 500
    assert measured.ece < 0.06
    assert fit_class(CLASSES[0], prompts, seed=1) == measured, "nothing is left to chance"
    strict, loose = measured.threshold(0.05, 0.05), measured.threshold(0.2, 0.05)
    assert strict is not None
    assert loose is not None
    assert loose < strict


def test_bins_of_the_reliability_have_equal_mass() -> None:
    scores = np.linspace(0, 1, 1000)
    bins = reliability(scores, np.random.default_rng(0).random(1000) < scores)
    assert [share for _, _, share in bins] == [0.1] * 10
    assert all(abs(score - outcome) < 0.12 for score, outcome, _ in bins)


def test_the_file_keeps_everything_and_has_no_date(tmp_path: Path) -> None:
    knots = ((-1.5, 0.125), (0.0, 0.1 + 0.2), (2.0, 0.875))
    warm = replace(GREEDY, sampling=CLASSES[2], map=ScoreMap(0.1, MAP.weights, knots))
    calibration = replace(CALIBRATION, classes=(GREEDY, warm))
    path = write_calibration(tmp_path, calibration)
    found = read_calibration(tmp_path)
    assert found == replace(calibration, digest=found.digest if found else "")
    first = path.read_bytes()
    write_calibration(tmp_path, calibration)
    assert path.read_bytes() == first == calibration_text(calibration).encode()
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    write_calibration(tmp_path, replace(calibration, epsilon=0.1))
    changed = read_calibration(tmp_path)
    assert found
    assert changed
    assert changed.digest != found.digest


def test_a_directory_without_one_is_uncalibrated(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda f: f.update(format=2),
        lambda f: f.update(epsilon=0),
        lambda f: f["features"].pop(),
        lambda f: f.pop("edge"),
        lambda f: f["classes"][0]["map"].update(intercept=float("nan")),
        lambda f: f["classes"][0]["map"]["weights"].pop(),
        lambda f: f["classes"][0]["map"].update(knots=[[0, 0.5], [1, 0.4]]),
        lambda f: f["classes"][0]["map"].update(knots=[[0, 0.5], [0, 0.6]]),
        lambda f: f["classes"][0]["walk"].reverse(),
        lambda f: f["classes"][0]["walk"][0].__setitem__(3, 501),
        lambda f: f["classes"][0].update(sampling="greedy"),
    ],
)
def test_a_broken_file_is_refused_with_what_to_do(tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = write_calibration(tmp_path, CALIBRATION)
    facts = json.loads(path.read_text())
    edit(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(ModelDirError, match="tiermesh calibrate"):
        read_calibration(tmp_path)
    path.write_bytes(b"\xff{")
    with pytest.raises(ModelDirError, match="tiermesh calibrate"):
        read_calibration(tmp_path)


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (Sampling(), "greedy"),
        (Sampling(top_p=0.5, top_k=3), "greedy"),
        (Sampling(0.5), "T<=0.5"),
        (Sampling(0.50001), "T<=0.9"),
        (Sampling(0.9), "T<=0.9"),
        (Sampling(1.3), "T<=1.3"),
        (Sampling(1.4), None),
        (Sampling(0.5, top_p=0.9), None),
        (Sampling(0.5, min_p=0.1), None),
        (Sampling(repetition_penalty=1.1), None),
        (Sampling(0.5, presence_penalty=0.1), None),
    ],
)
def test_each_request_has_one_class_or_none(sampling: Sampling, name: str | None) -> None:
    assert [each.name for each in CLASSES if each.holds(sampling)] == ([name] if name else [])


SURE, FAIR, UNSURE = unit_of(0.99, 0.98), unit_of(0.92), unit_of(0.99, 0.5)


@pytest.mark.parametrize(
    ("unit", "quality", "delta", "expected"),
    [
        (SURE, Quality.BOUNDED, 0.05, Decision.ALONE),
        (FAIR, Quality.BOUNDED, 0.05, Decision.ALONE),
        (FAIR, Quality.BOUNDED, 0.02, Decision.ASK),
        (SURE, Quality.BOUNDED, 0.02, Decision.ALONE),
        (SURE, Quality.BOUNDED, 0.001, Decision.ASK),
        (UNSURE, Quality.BOUNDED, 0.05, Decision.ASK),
        (UNSURE, Quality.BOUNDED, 1.0, Decision.ALONE),
        (SURE, Quality.EXACT, 0.05, Decision.ASK),
        (SURE, Quality.BOUNDED, 0.0, Decision.ASK),
        (UNSURE, Quality.EDGE, 0.0, Decision.ALONE),
    ],
)
def test_one_calibration_serves_every_bound(unit: Unit, quality: Quality, delta: float, expected: Decision) -> None:
    assert Trust(lambda: CALIBRATION, Sampling()).decide(unit, quality, delta) is expected


@pytest.mark.parametrize("sampling", [Sampling(0.8), Sampling(repetition_penalty=1.2)])
def test_what_is_uncalibrated_asks(sampling: Sampling) -> None:
    assert Trust(lambda: CALIBRATION, sampling).decide(SURE, Quality.BOUNDED, 0.05) is Decision.ASK
    assert Trust(lambda: None, Sampling()).decide(SURE, Quality.BOUNDED, 0.05) is Decision.ASK
    # What was calibrated are whole units.
    assert Trust(lambda: CALIBRATION, Sampling()).decide(replace(SURE, cut=True), Quality.BOUNDED, 0.05) is Decision.ASK


def test_thresholds_are_kept_for_a_bounded_number_of_bounds() -> None:
    measured = replace(GREEDY, _found={})
    for delta in np.linspace(0.001, 0.2, 1000).tolist():
        measured.threshold(delta, 0.05)
    assert len(measured._found) <= 256


def test_a_calibration_speaks_of_its_own_pair_alone(capsys: pytest.CaptureFixture[str]) -> None:
    pairing = Pairing(EDGE, CALIBRATION)
    other = replace(POOL, digests=replace(POOL.digests, model="b" * 64))
    assert pairing.in_force(None) is None
    told = [capsys.readouterr().out for pool in (POOL, POOL, other, other, POOL) if pairing.in_force(pool) or True]
    assert ["uncalibrated" in line for line in told] == [False, False, True, False, False]
    assert ["calibrated" in line for line in told] == [True, False, True, False, True]
    assert pairing.in_force(POOL) is CALIBRATION
    assert pairing.in_force(other) is None
    assert Pairing(replace(EDGE, model="d" * 64), CALIBRATION).in_force(POOL) is None
    assert Pairing(EDGE, None).in_force(POOL) is None

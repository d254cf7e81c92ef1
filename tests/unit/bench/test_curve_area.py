"""Curves and their comparison: exact on straight lines, nothing where nothing differs, an oracle on top."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.bench.curve import Case, draw, figures_of, measure, thresholds_of
from tiermesh.bench.curve_area import FIELDS, Floats, Sweeps, compare, interpolated, mean_height
from tiermesh.edge.calibration import CLASSES, ClassCalibration, ScoreMap
from tiermesh.training.heldout import Prompt

Make = Callable[..., Any]


def sweep(*points: tuple[float, float], prompts: int = 40) -> Floats:
    """Of ten-token answers with so many passes and so large a share of same tokens, for every prompt alike."""
    told = np.zeros((len(points), prompts, len(FIELDS)))
    for name, value in (("answers", 1.0), ("tokens", 10.0)):
        told[..., FIELDS.index(name)] = value
    for index, (cost, quality) in enumerate(points):
        told[index, :, FIELDS.index("passes")] = 10 * cost
        told[index, :, FIELDS.index("same_tokens")] = 10 * quality
    return told


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_interpolation_goes_through_the_points_in_any_order(points: list[tuple[float, float]], order: Any) -> None:
    distinct = list({cost: (cost, quality) for cost, quality in points}.values())
    order.shuffle(distinct)
    cost, quality = np.array(distinct).T
    assert interpolated(cost, quality, cost) == pytest.approx(quality, abs=1e-9)
    between = interpolated(cost, quality, np.linspace(0, 1, 50))
    assert between.min() >= quality.min() - 1e-9
    assert between.max() <= quality.max() + 1e-9


def test_points_of_one_cost_count_by_their_mean() -> None:
    at = interpolated(np.array([1.0, 0.0, 1.0]), np.array([0.4, 0.0, 0.8]), np.array([0.0, 0.5, 1.0]))
    assert at == pytest.approx([0.0, 0.3, 0.6])


@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(1, 50))
def test_the_mean_height_of_a_line_is_its_middle(begin: float, end: float, steps: int) -> None:
    assert mean_height(np.linspace(begin, end, steps + 1)) == pytest.approx((begin + end) / 2)


def test_areas_are_those_of_the_triangles() -> None:
    ends = (0.4, 1.0), (0.0, 0.5)
    random = sweep(*ends)
    score = sweep(ends[0], (0.2, 0.875), ends[1])  # half way, half as far above the chord as can be
    oracle = sweep(ends[0], (0.0, 1.0), ends[1])  # at no cost as good as the cloud; its mean with the end is 0.75
    told: Any = compare(Sweeps(score, random, oracle), "same_tokens", "passes")
    assert told["cost_of_always_asking"] == pytest.approx(0.4)
    assert (told["never_asking"], told["always_asking"]) == pytest.approx((0.5, 1.0))
    area = told["area"]
    assert area["score_over_random"] == pytest.approx(0.125)
    assert area["score_over_chord"] == pytest.approx(0.125)
    assert area["random_over_chord"] == pytest.approx(0.0)
    assert area["interval"] == pytest.approx([0.125, 0.125]), "all prompts are alike"
    assert area["oracle_over_random"] == pytest.approx(0.25, abs=0.01)
    assert area["share_of_oracle"] == pytest.approx(0.5, abs=0.02)
    assert told["above_random_everywhere"]
    assert told["places_with_interval_above_zero"] == told["places"] == 19
    assert told["grid"][9]["cost"] == pytest.approx(0.2)
    assert told["grid"][9]["above"] == pytest.approx(0.125)


def test_a_score_below_random_is_told_so() -> None:
    ends = (0.4, 1.0), (0.0, 0.5)
    told: Any = compare(
        Sweeps(sweep(ends[0], (0.3, 0.6), ends[1]), sweep(*ends), sweep(*ends)), "same_tokens", "passes"
    )
    assert told["area"]["score_over_random"] < 0
    assert told["area"]["share_of_oracle"] is None, "an oracle no better than chance is no measure"
    assert not told["above_random_everywhere"]
    assert told["places_with_interval_below_zero"] == 19


def test_without_a_gain_from_asking_there_is_no_area() -> None:
    flat = sweep((0.4, 0.8), (0.0, 0.8))
    told: Any = compare(Sweeps(flat, flat, flat), "same_tokens", "passes")
    assert told["area"] is None
    assert not told["above_random_everywhere"]


def test_the_interval_is_wide_where_few_prompts_decide() -> None:
    ends = (0.4, 1.0), (0.0, 0.5)
    score = sweep(ends[0], (0.2, 0.7), ends[1])
    score[1, :2, FIELDS.index("same_tokens")] = 100.0  # two prompts of 40 carry it all
    told: Any = compare(Sweeps(score, sweep(*ends), sweep(*ends)), "same_tokens", "passes")
    middle = told["grid"][9]
    assert middle["low"] < 0 < middle["above"] < middle["high"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_thresholds_go_from_always_to_never(ranks: list[float]) -> None:
    found = thresholds_of([ranks], 0.5)
    assert (found[0], found[-1]) == (math.inf, -math.inf)
    assert all(strict > loose for strict, loose in pairwise(found))
    assert {min(ranks), max(ranks), 0.5} <= set(found)


def toy_cases(toy: Make, count: int) -> list[Case]:
    """Half of them called commands; the truth of a command is the cloud's text, as far as its ids are digits."""
    cases = []
    for seed in range(count):
        one = toy(seed, 0.9, 24)
        command = seed % 2 == 0
        truth = "".join(map(str, one.text)) if command else None
        prompt = Prompt("command" if command else "code", f"{seed}", truth=truth)
        cases.append(Case(prompt, [1, 2, 3], one.limits, one.edge, one.cloud, lambda ids: "".join(map(str, ids))))
    return cases


def test_of_toys_the_oracle_is_above_the_score_and_that_above_chance(
    toy: Make, product: ScoreMap, tmp_path: Path
) -> None:
    measured = ClassCalibration(CLASSES[0], product, (), fitted=0, tested=0, log_loss=0.0, ece=0.0)
    cases = toy_cases(toy, 40)
    counts = measure(cases, measured, 0.05)
    figures: Any = figures_of([case.prompt.kind for case in cases], counts)
    for name, told in figures["planes"].items():
        if name.endswith("passes") and "regret" not in name:
            assert 0 < told["area"]["score_over_random"] < told["area"]["oracle_over_random"], name
            assert 0 < told["area"]["share_of_oracle"] < 1
    commands = figures["points"]["commands"]
    for rows in commands.values():
        assert all(row["exact_match"] == row["same_answer"] <= row["same_tokens"] for row in rows)
    (cloud,), (drafted,), (never,) = (commands[f"{w}"] for w in ("cloud only", "cloud with n-gram drafts", "edge only"))
    assert cloud["passes_per_token"] == 1
    assert cloud["same_answer"] == drafted["same_answer"] == cloud["without_regret"] == 1
    assert (never["passes_per_token"], never["positions_per_token"], never["unvisited"]) == (0, 0, 1)
    for way in ("score", "random", "oracle"):
        assert commands[way][0] == commands["always ask"][0]
        assert commands[way][-1] == pytest.approx(never)
    assert all(row == commands["always ask"][0] for row in commands["deployed"]), "no step of a walk, no trust"
    draw(figures, tmp_path)
    assert len(list(tmp_path.glob("curve_*.png"))) == 6

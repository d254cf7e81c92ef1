"""The thresholds keep their bound: over many draws of the prompts, with a control that does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.edge.fitting import Scored, walk
from tiermesh.edge.risk import Step, begins_at, fewest_prompts, loosest, p_value

EPSILON = 0.05
RUNS = 500
SLACK = 3 * math.sqrt(EPSILON * (1 - EPSILON) / RUNS)
"""Three standard deviations of a violation rate that is exactly ε."""


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.integers(1, 99))
def test_the_p_value_is_the_exact_binomial_tail(counts: tuple[int, int], percent: int) -> None:
    n, wrong = counts
    delta = Fraction(percent, 100)
    exact = sum(math.comb(n, k) * delta**k * (1 - delta) ** (n - k) for k in range(wrong + 1))
    assert p_value(n, wrong, percent / 100) == pytest.approx(float(exact), rel=1e-9)


def test_the_p_value_survives_many_prompts() -> None:
    """The first terms underflow; the tail does not."""
    assert p_value(100_000, 50_000, 0.5) == pytest.approx(0.5, abs=0.01)
    assert p_value(100_000, 40_000, 0.5) < 1e-300


def test_thirteen_hundred_prompts_find_two_percent_at_one_percent() -> None:
    passing = max(wrong for wrong in range(60) if p_value(1300, wrong, 0.02) <= EPSILON)
    assert 0.87 < p_value(1300, passing, 0.01) < 0.95


@dataclass(frozen=True)
class Population:
    """Prompts with up to five units each, that depend on each other: hard prompts have more, and err together."""

    rng: np.random.Generator

    def draw(self, count: int) -> tuple[Scored, npt.NDArray[np.float64]]:
        """Units, and the true probability that each is wrong."""
        rng = self.rng
        hardness = rng.random(count)
        sizes = 1 + rng.binomial(4, hardness)
        numbers = np.repeat(np.arange(count), sizes)
        scores = rng.beta(6, 1 + 2 * hardness[numbers])
        wrong = np.clip(4 * (1 - scores) ** 3 * (0.3 + 1.4 * hardness[numbers]), 0, 1)
        # One uniform per prompt, mostly: whoever errs, errs in several units.
        shared = np.where(rng.random(len(numbers)) < 0.7, rng.random(count)[numbers], rng.random(len(numbers)))
        return Scored(numbers, scores, shared >= wrong), wrong


def risk(units: Scored, wrong: npt.NDArray[np.float64], threshold: float) -> float:
    """The stated risk, from probabilities: the share of units shown alone that are wrong, averaged over prompts."""
    kept = units.scores >= threshold
    total = np.bincount(units.prompts[kept], wrong[kept])
    count = np.bincount(units.prompts[kept])
    return float((total[count > 0] / count[count > 0]).mean())


@pytest.fixture(scope="module")
def runs() -> list[tuple[Step, ...]]:
    """Walks over independent draws of 650 fit and 1,300 test prompts."""
    rng = np.random.default_rng(20)
    population = Population(rng)
    return [walk(population.draw(650)[0], population.draw(1300)[0], rng) for _ in range(RUNS)]


GRID = np.linspace(0, 1, 201)


@pytest.fixture(scope="module")
def risks() -> npt.NDArray[np.float64]:
    """The stated risk of each threshold of the grid but the last."""
    units, wrong = Population(np.random.default_rng(21)).draw(50_000)
    return np.array([risk(units, wrong, threshold) for threshold in GRID[:-1]])


def plain_count(steps: tuple[Step, ...], delta: float) -> float:
    """The loosest threshold with at most the bounded share among what was counted, without a test."""
    return min((s.threshold for s in steps if s.prompts and s.wrong <= delta * s.prompts), default=2.0)


@pytest.mark.parametrize("delta", [0.01, 0.02, 0.05, 0.1])
def test_the_bound_holds_with_its_confidence_and_a_plain_count_does_not(delta: float, runs, risks) -> None:
    # Where the risk first exceeds the bound when coming from strict; a threshold below it breaks the bound.
    border = GRID[np.flatnonzero(risks > delta).max() + 1]
    ours = [loosest(steps, 1300, delta, EPSILON) for steps in runs]
    violated = sum(threshold is not None and threshold < border for threshold in ours) / RUNS
    control = sum(plain_count(steps, delta) < border for steps in runs) / RUNS
    assert violated <= EPSILON + SLACK
    assert control > 0.3
    assert sum(threshold is not None for threshold in ours) > 0.5 * RUNS, "a walk that trusts nothing proves nothing"


def steps_of(*counts: tuple[int, int]) -> tuple[Step, ...]:
    """Ever looser thresholds with (prompts, wrong) each, of 1,000 tested prompts."""
    return tuple(Step(1 - i / 100, n / 1000, n, wrong) for i, (n, wrong) in enumerate(counts))


def test_a_walk_stops_at_the_first_step_that_fails() -> None:
    walked = steps_of((200, 0), (400, 2), (600, 90), (1000, 1))
    assert loosest(walked, 1000, 0.05, EPSILON) == walked[1].threshold
    assert loosest(walked[:2], 1000, 0.05, EPSILON) == walked[1].threshold


def test_steps_without_power_are_passed_over_and_do_not_stop_the_walk() -> None:
    walked = steps_of((30, 0), (80, 1), (300, 1))
    assert p_value(80, 1, 0.05) > EPSILON
    assert loosest(walked, 1000, 0.05, EPSILON) == walked[2].threshold
    assert loosest(walked[:2], 1000, 0.05, EPSILON) is None, "fewer than 100 prompts settle nothing"


@given(st.lists(st.tuples(st.integers(100, 2000), st.integers(0, 100)), min_size=1, max_size=12))
def test_a_smaller_epsilon_and_a_tighter_bound_never_trust_more(counts: list[tuple[int, int]]) -> None:
    walked = steps_of(*sorted(counts))

    def strictness(delta: float, epsilon: float) -> float:
        return loosest(walked, 100, delta, epsilon) or 2.0  # with 100 tested prompts every walk begins at its start

    assert strictness(0.05, 0.01) >= strictness(0.05, 0.05)
    assert strictness(0.02, 0.05) >= strictness(0.1, 0.05)
    assert strictness(0.0, 0.05) == 2.0
    assert strictness(1.0, 0.05) == walked[-1].threshold


@pytest.mark.parametrize(("delta", "fewest"), [(0.01, 299), (0.02, 149), (0.05, 59), (0.1, 29)])
def test_a_walk_begins_where_it_can_pass(delta: float, fewest: int) -> None:
    assert fewest_prompts(delta, EPSILON) == fewest
    assert p_value(fewest, 0, delta) <= EPSILON < p_value(fewest - 1, 0, delta)
    assert begins_at(10_000, delta, EPSILON) == max(100, 3 * fewest)
    assert 100 <= begins_at(300, delta, EPSILON) <= 150

"""What is learned: medians, lines, rates, costs; in bounded memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.types import ChatMessage
from tiermesh.router.averages import Decayed, DecayedLine, DrainRate, RunningMedian, RunningQuantile
from tiermesh.router.estimates import Estimates, actual_cost
from tiermesh.router.worker_times import WorkerTimes


def test_medians_and_means() -> None:
    seen = RunningMedian(5.0, window=3)
    assert seen.value == 5.0
    for value in (1.0, 2.0, 100.0, 300.0):
        seen.add(value)
    assert seen.value == 100.0
    mean = Decayed(9.0, half_life=1.0)
    mean.add(1.0)
    assert mean.value == 1.0
    mean.add(3.0)
    assert mean.value == 2.0


def test_the_drain_rate_is_that_of_the_last_while_of_waiting() -> None:
    rate = DrainRate(half_life_s=10.0, least=16.0)
    rate.left(100.0)
    assert rate.seconds(20.0) == 0.0, "nothing is known before a second of waiting"
    for _ in range(200):
        rate.waited(0.5)
        rate.left(10.0)
    assert rate.seconds(20.0) == pytest.approx(1.0, rel=0.05)
    for _ in range(100):
        rate.waited(0.5)
        rate.left(20.0)
    assert rate.seconds(20.0) == pytest.approx(0.5, rel=0.1)


def test_a_slow_drain_remembers_what_left_longer_than_its_half_life() -> None:
    """One in 50 s, half of them ten times as large: the last alone would be wrong by a factor of five."""
    rate = DrainRate(half_life_s=10.0, least=16.0)
    for number in range(64):
        rate.waited(50.0)
        rate.left(10.0 if number % 2 else 100.0)
    assert rate.seconds(55.0) == pytest.approx(50.0, rel=0.1)


def test_a_drain_that_gives_nothing_is_told_from_an_unknown_one() -> None:
    rate = DrainRate()
    rate.waited(0.9)
    assert not rate.stuck
    rate.waited(0.2)
    assert rate.stuck
    rate.left(1.0)
    assert not rate.stuck


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.01), st.integers(0, 2**32))
def test_a_line_is_found_again(intercept: float, slope: float, seed: int) -> None:
    rng = random.Random(seed)
    line = DecayedLine(7.0)
    assert line.at(3.0) == 7.0
    for _ in range(300):
        x = rng.uniform(0, 1000)
        line.add(x, intercept + slope * x)
    for x in (0.0, 500.0, 2000.0):
        assert line.at(x) == pytest.approx(intercept + slope * x, rel=0.02, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3)), min_size=1, max_size=50), st.floats(0, 1e7))
def test_a_line_never_promises_less_than_nothing(points: list[tuple[float, float]], x: float) -> None:
    line = DecayedLine(0.0)
    for point in points:
        line.add(*point)
    assert 0.0 <= line.at(0.0) <= line.at(x) < float("inf")


def test_without_different_values_the_line_is_flat() -> None:
    line = DecayedLine(0.0)
    for index in range(1000):
        line.add(128.0, 0.1 + 0.01 * (index % 2))
    assert line.at(0.0) == line.at(1e6) == pytest.approx(0.105, abs=0.002)


def test_a_line_follows_a_change() -> None:
    line = DecayedLine(0.0)
    rng = random.Random(0)
    for slope in (0.001, 0.004):
        for _ in range(600):
            x = rng.uniform(10, 1000)
            line.add(x, slope * x)
    assert line.at(1000.0) == pytest.approx(4.0, rel=0.02)


def test_each_worker_has_its_own_times_and_new_ones_the_pool_s() -> None:
    times = WorkerTimes()
    rng = random.Random(1)
    for _ in range(300):
        uncached, batch = rng.uniform(10, 1000), rng.randint(1, 16)
        times.timed("fast", uncached, 0.01 + 1e-4 * uncached, batch, 0.01 + 1e-3 * batch)
        times.timed("slow", uncached, 0.02 + 4e-4 * uncached, batch, 0.02 + 4e-3 * batch)
    assert times.ttft_s(500, "fast") == pytest.approx(0.06, rel=0.01)
    assert times.ttft_s(500, "slow") == pytest.approx(0.22, rel=0.01)
    assert times.tpot_s(8, "slow") == pytest.approx(0.052, rel=0.01)
    assert 0.06 < times.ttft_s(500, "new") < 0.22
    for number in range(5000):
        times.timed(f"worker {number}", 10, 0.1, 1, None)
    assert len(times._workers) <= 256


def test_costs_follow_what_answers_turn_out_to_be() -> None:
    estimates = Estimates()
    assert estimates.prompt_tokens((1, 2, 3)) == 3
    assert estimates.output_tokens("a", "m", 16) == 16
    for _ in range(9):
        estimates.finished("a", "m", 200, 10)
        estimates.read("a", "x" * 100, 50, 0)
    assert estimates.output_tokens("a", "m", 200) == 10
    assert estimates.output_tokens("b", "m", 200) == estimates.output_tokens("a", "other", 200) == 64
    assert estimates.prompt_tokens("y" * 10) == 5
    assert estimates.prompt_tokens((ChatMessage("user", "y" * 20),)) == 10
    assert actual_cost(5, 10) == 25


def test_a_prompt_that_workers_have_cached_costs_less() -> None:
    estimates = Estimates()
    assert estimates.uncached_tokens("a", 100) == 100
    for _ in range(50):
        estimates.read("a", (1,) * 100, 100, 75)
    assert estimates.uncached_tokens("a", 100) == pytest.approx(25)
    assert estimates.uncached_tokens("b", 100) == 100


@given(gaps=st.lists(st.floats(0.01, 5.0), min_size=4, max_size=60), silence=st.floats(0.0, 60.0))
def test_who_is_wary_expects_gaps_of_a_third_of_a_silence(gaps: list[float], silence: float) -> None:
    rate = DrainRate()
    for gap in [*gaps, 1.0]:
        rate.waited(gap)
        rate.left(8.0)
    assert rate.seconds(80.0, wary=True) == rate.seconds(80.0)
    rate.waited(silence)
    assert rate.seconds(80.0, wary=True) >= max(rate.seconds(80.0), 10 * silence / 3 - 1e-9)
    rate.left(8.0)
    assert rate.seconds(80.0, wary=True) == rate.seconds(80.0)


def test_service_is_the_mean_over_the_workers_that_are_there() -> None:
    estimates = Estimates()
    for worker, scale in (("fast", 1.0), ("slow", 3.0)):
        for _ in range(9):
            estimates.workers.timed(worker, 100, 0.1 * scale, 4, 0.01 * scale)
    assert estimates.service_s(100, 11, {"fast": 4}) == pytest.approx(0.2)
    assert estimates.service_s(100, 11, {"fast": 4, "slow": 4}) == pytest.approx(0.4)
    assert 0.2 < estimates.service_s(100, 11, {}) < 0.6


def test_a_conversation_tells_what_it_has_had() -> None:
    estimates = Estimates()
    for _ in range(50):
        estimates.read("a", "x" * 100, 50, 0)  # two characters per token
    question, answer = ChatMessage("user", "q" * 20), ChatMessage("assistant", "a" * 40)
    assert estimates.attained("text") == estimates.attained((1, 2)) == estimates.attained((question,)) == 0
    assert estimates.attained((question, answer, question)) == pytest.approx(10 + 2 * 20)
    assert estimates.attained((question, answer) * 2 + (question,)) == pytest.approx(2 * (10 + 2 * 20))


def test_memory_is_bounded() -> None:
    estimates = Estimates()
    for number in range(9000):
        estimates.finished(f"tenant {number}", "m", 100, 5)
        estimates.read(f"tenant {number}", "x", 1, 0)
    assert estimates.output_tokens("tenant 8999", "m", 100) == 5
    assert estimates.output_tokens("tenant 0", "m", 100) == 64
    assert len(estimates._outputs._values) == len(estimates._cached._values) == 4096


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.01, 1e3)), min_size=1, max_size=200), st.floats(0.05, 0.95))
def test_a_running_quantile_is_the_least_value_that_covers_its_part_of_the_weight(
    values: list[tuple[float, float]], part: float
) -> None:
    quantile = RunningQuantile(5.0, part)
    assert quantile.value == 5.0
    for value, weight in values:
        quantile.add(value, weight)
    recent = values[-64:]
    whole = sum(weight for _, weight in recent)
    assert quantile.value in [value for value, _ in recent]
    assert sum(weight for value, weight in recent if value <= quantile.value) >= (part - 1e-9) * whole
    assert sum(weight for value, weight in recent if value < quantile.value) <= (part + 1e-9) * whole


def test_answers_of_a_tier_that_others_hold_up_are_thought_to_take_longer() -> None:
    estimates = Estimates()
    assert estimates.slow_s("a", "batch", 2.0) == 2.0
    for number in range(50):
        estimates.took("a", "batch", 1.0, 3.0 if number % 5 == 0 else 1.0)
        estimates.took("a", "realtime", 1.0, 0.5)
        estimates.took("a", "standard", 1.0, 1.0)
    estimates.took("a", "standard", 0.001, 9.0)
    assert estimates.slow_s("a", "batch", 2.0) == pytest.approx(6.0)
    assert estimates.slow_s("a", "realtime", 2.0) == 2.0, "what is expected is to be expected"
    assert estimates.slow_s("a", "standard", 2.0) == pytest.approx(2.0), "a short answer says little of long ones"
    assert estimates.slow_s("b", "batch", 2.0) == 2.0, "what one tenant asks keeps no other out"

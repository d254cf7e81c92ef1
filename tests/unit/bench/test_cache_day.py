"""The synthetic day: its law, its hours, and what a cache could serve of it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.bench.cache_day import Call, repeats, synthetic_day

DAY = synthetic_day(20_000, 50, 1.0, seed=3)


def test_prompts_follow_zipfs_law() -> None:
    counts = Counter(call.prompt for call in DAY)
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.15)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.25)
    assert set(counts) == set(range(50))


def test_the_afternoon_is_busier_than_the_night() -> None:
    by_hour = Counter(int(call.at * 24) for call in DAY)
    mean = len(DAY) / 24
    assert [call.at for call in DAY] == sorted(call.at for call in DAY)
    assert (by_hour[3] + by_hour[4]) / 2 == pytest.approx(0.2 * mean, rel=0.25)
    assert (by_hour[15] + by_hour[16]) / 2 == pytest.approx(1.8 * mean, rel=0.1)


def test_a_seed_is_a_day() -> None:
    assert synthetic_day(100, 9, 1.0, seed=4) == synthetic_day(100, 9, 1.0, seed=4)
    assert synthetic_day(100, 9, 1.0, seed=4) != synthetic_day(100, 9, 1.0, seed=5)


CALLS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=30).map(
    lambda pairs: [Call(at / 40, prompt) for at, prompt in sorted(pairs)]
)


@given(CALLS)
def test_who_never_forgets_misses_each_prompt_once(day: list[Call]) -> None:
    assert repeats(day, 2.0) == len(day) - len({call.prompt for call in day})


def test_an_answer_is_forgotten_at_its_time_however_often_it_was_asked() -> None:
    day = [Call(0.0, 0), Call(0.1, 0), Call(0.2, 0), Call(0.25, 0), Call(0.3, 0)]
    assert repeats(day, 0.25) == 3

"""The breaker: when it opens, when it tries, how it closes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cache.breaker import Breaker, State


def test_only_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    for _ in range(20):
        for _ in range(4):
            breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.closed
    for _ in range(5):
        assert breaker.closed
        breaker.failed(0.0)
    assert breaker.state is State.OPEN


def test_a_trial_comes_after_a_pause_that_doubles_up_to_a_bound() -> None:
    breaker, now, pauses = Breaker(), 100.0, []
    breaker.trip(now)
    for _ in range(8):
        pauses.append(breaker.trial_in_s(now))
        now += pauses[-1]
        assert breaker.trial_in_s(now) == 0
        breaker.trial()
        assert breaker.state is State.HALF_OPEN
        breaker.failed(now)
        assert breaker.state is State.OPEN
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    breaker.trial()
    breaker.succeeded()
    breaker.trip(now)
    assert breaker.trial_in_s(now) == 0.25


@given(st.lists(st.sampled_from(["failed", "succeeded", "trip", "trial"]), max_size=40))
def test_one_success_always_closes_it_and_no_pause_is_longer_than_the_bound(steps: list[str]) -> None:
    breaker, now = Breaker(), 0.0
    for step in steps:
        now += 1.0
        if step in ("failed", "trip"):
            getattr(breaker, step)(now)
        else:
            getattr(breaker, step)()
        assert 0.0 <= breaker.trial_in_s(now) <= 5.0
    breaker.succeeded()
    assert breaker.closed

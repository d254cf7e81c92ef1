"""Which workers are set aside, and for how long."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tiermesh.common.frames import Load
from tiermesh.router.choice import room_of
from tiermesh.router.registry import Worker
from tiermesh.router.standing import ASIDE_S, FAILURES, STEADY_S, Standing


def standing_up() -> Standing:
    """Of a worker whose stream stands."""
    standing = Standing()
    standing.up(0.0)
    return standing


def ejected(standing: Standing, now: float) -> float:
    """Fails until it is set aside; for how long."""
    for _ in range(20):
        if standing.failed(now):
            return standing.aside_until - now
    raise AssertionError("never set aside")


def test_one_that_comes_and_goes_is_set_aside_longer_each_time() -> None:
    standing, pauses, now = Standing(), [], 100.0
    for _ in range(9):
        standing.up(now)
        pauses.append(max(0.0, standing.aside_until - now))
        assert standing.trusted(now + pauses[-1])
        now += pauses[-1] + 5.0
        standing.broke(now)
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 30, 30], "a first break is a restart"
    assert standing.ejections == 7


def test_one_that_stood_for_long_begins_anew() -> None:
    standing = Standing()
    for _ in range(5):
        standing.up(0.0)
        standing.broke(1.0)
    standing.up(1.0)
    assert standing.aside_until > 1.0
    standing.broke(1.0 + STEADY_S)
    standing.up(2.0 + STEADY_S)
    assert standing.trusted(2.0 + STEADY_S)


def test_three_failures_in_a_row_set_aside_and_one_success_after_it_brings_back() -> None:
    standing = standing_up()
    assert [standing.failed(10.0) for _ in range(FAILURES)] == [False, False, True]
    assert (standing.state(10.5), standing.state(11.1), standing.ejections) == ("ejected", "trial", 1)
    assert standing.succeeded()
    assert standing.state(11.2) == "up"
    assert not standing.failed(11.3)


def test_in_trial_one_failure_is_enough_and_the_time_doubles_up_to_a_bound() -> None:
    standing, now, spans = standing_up(), 0.0, []
    for _ in range(7):
        spans.append(ejected(standing, now))
        now = standing.aside_until
    assert spans == [1, 2, 4, 8, 16, 30, 30]
    assert standing.ejections == 7
    assert standing.succeeded()
    assert ejected(standing, now) == ASIDE_S[0]


def test_one_that_fails_half_of_the_time_is_set_aside_and_one_in_ten_is_not() -> None:
    flaky, fair = standing_up(), standing_up()
    assert any([flaky.failed(0.0), flaky.succeeded()][0] for _ in range(20))
    for at in range(1000):
        assert not fair.failed(0.0) if at % 10 == 0 else not fair.succeeded()


def test_what_fails_while_it_is_set_aside_does_not_prolong_it() -> None:
    standing = standing_up()
    ejected(standing, 0.0)
    assert not any(standing.failed(0.5) for _ in range(10)), "it was sent before"
    assert standing.aside_until == 1.0


def test_a_new_stream_is_on_no_trial_for_what_failed_on_the_last() -> None:
    standing = standing_up()
    ejected(standing, 0.0)
    standing.broke(0.5)
    standing.up(0.6)
    assert standing.state(0.6) == "up"
    assert not standing.failed(0.7)


def test_what_fails_with_a_broken_stream_is_no_failure_of_the_next_one() -> None:
    standing = Standing()
    standing.up(0.0)
    standing.failed(0.0)
    standing.broke(0.0)
    assert not any(standing.failed(0.0) for _ in range(FAILURES))


def test_silence_is_noticed_and_so_is_its_end() -> None:
    standing = Standing()
    standing.up(0.0)
    assert not standing.look(1)
    looks = [standing.look(1) for _ in range(20)]
    assert looks.count(True) == 1
    assert not standing.trusted(9.0)
    assert standing.state(9.0) == "silent"
    assert standing.stuck
    assert standing.look(2)
    assert standing.trusted(9.0)
    assert standing.state(9.0) == "up"
    assert not standing.stuck


@pytest.mark.parametrize(
    "lie",
    [
        {"slots": 2**32 - 1},
        {"slots": -5},
        {"slots": 0},
        {"waiting": 2**32 - 1},
        {"waiting": -1},
        {"kv_free": math.nan},
        {"kv_free": -math.inf},
        {"kv_free": math.inf},
        {"step_s": math.nan, "running": -1},
    ],
    ids=str,
)
def test_whatever_a_worker_says_its_limit_is_sane(lie: dict[str, Any]) -> None:
    """The router gives it at least one request, or nothing would ever show that it is well again."""
    worker = Worker("w", None)  # type: ignore[arg-type]
    facts: dict[str, Any] = {"slots": 8, "running": 0, "waiting": 0, "kv_free": 1.0, "step_s": 0.01} | lie
    for _ in range(3000):
        worker.loaded(Load(**facts))
        assert 1 <= worker.limit <= max(1, min(facts["slots"], 1024) + 1)
        assert 0 <= worker.room <= max(1, min(facts["slots"], 1024) // 2)
    if lie.get("waiting", 0) > 0 or math.isnan(lie.get("kv_free", 1.0)):
        assert worker.limit == 1, "no room is known there"


def loaded(worker: Worker, waiting: int = 0, kv_free: float = 1.0) -> None:
    worker.loaded(Load(16, 16, waiting, kv_free, 0.01))


def test_what_was_sent_beyond_the_limit_may_wait_there_and_does_not_lower_it() -> None:
    """Sixteen slots and one that waits; two more come, and whoever gave way to them waits too."""
    worker = Worker("w", None)  # type: ignore[arg-type]
    loaded(worker)
    within = [worker.begin() for _ in range(17)]
    assert not any(within)
    assert [worker.begin(), worker.begin()] == [True, True]
    loaded(worker, waiting=3)
    assert worker.limit == 17
    loaded(worker, waiting=4)
    assert worker.limit == 15, "one more than that is somebody else's, and tells that the limit is too high"


def test_a_load_frame_that_was_on_its_way_when_they_ended_does_not_lower_it_either() -> None:
    worker = Worker("w", None)  # type: ignore[arg-type]
    loaded(worker)
    for _ in range(17):
        worker.begin()
    worker.end(worker.begin())
    loaded(worker, waiting=2)
    assert (worker.limit, worker.in_flight) == (17, 17)
    loaded(worker, waiting=2)
    assert worker.limit == 15


def test_room_is_a_half_of_the_slots_as_far_as_kv_is_free_for_as_much() -> None:
    worker = Worker("w", None)  # type: ignore[arg-type]
    assert worker.room == 0, "nothing is known yet"
    for kv_free, room in ((1.0, 8), (0.4, 6), (0.25, 4), (0.2, 0), (math.nan, 0)):
        loaded(worker, kv_free=kv_free)
        assert worker.room == room
    loaded(worker)
    worker.lost(0.0)
    assert worker.room == 0
    assert [room_of(slots) for slots in (0, 1, 7, 8, 64)] == [1, 1, 3, 4, 32]

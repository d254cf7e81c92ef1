"""Which workers are set aside, and for how long."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tiermesh.common.frames import Load
from tiermesh.router.registry import Worker
from tiermesh.router.standing import ASIDE_S, FAILURES, STEADY_S, Standing


def test_one_that_comes_and_goes_is_set_aside_longer_each_time() -> None:
    standing, pauses, now = Standing(), [], 100.0
    for _ in range(9):
        standing.up(now)
        pauses.append(max(0.0, standing.aside_until - now))
        assert standing.trusted(now + pauses[-1])
        now += pauses[-1] + 5.0
        standing.broke(now)
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 30, 30], "a first break is a restart"


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


def test_failures_in_a_row_set_aside_longer_each_time_until_one_succeeds() -> None:
    standing, now = Standing(), 0.0
    standing.up(now)
    for times in range(7):
        for left in reversed(range(FAILURES)):
            assert standing.failed(now) == (left == 0)
        assert standing.aside_until == now + min(ASIDE_S[0] * 2**times, ASIDE_S[1])
        assert not standing.failed(now), "what fails while it is set aside was sent before"
        now = standing.aside_until
    standing.succeeded()
    for _ in range(FAILURES):
        standing.failed(now)
    assert standing.aside_until == now + ASIDE_S[0]


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
    assert standing.stuck
    assert standing.look(2)
    assert standing.trusted(9.0)
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
    if lie.get("waiting", 0) > 0 or math.isnan(lie.get("kv_free", 1.0)):
        assert worker.limit == 1, "no room is known there"

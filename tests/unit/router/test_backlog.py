"""A tenant's own order: who is due first, shortest first, late ones last, long conversations later."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.router.backlog import MAX_LEVEL, Backlog, Waiting, level
from tiermesh.router.jobs import Decision, Dispatch, Job, TenantRule, TierRule
from tiermesh.router.scheduler import SLICE_TOKENS, Scheduler

TIERS = [TierRule("high", 1.0, 0.1), TierRule("low", 1.0, 0.1)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 9)] * 2), min_size=1, max_size=30), st.integers(0, 99))
def test_on_time_by_key_then_late_by_key(jobs: list[tuple[float, float]], seed: int) -> None:
    rng = random.Random(seed)
    backlog = Backlog()
    waiting = {number: Waiting(key, number, 1.0, until) for number, (key, until) in enumerate(jobs)}
    for item in waiting.values():
        backlog.push(item, 0.0)
    now = 0.0
    while waiting:
        now += rng.uniform(0, 2)
        expected = min(waiting.values(), key=partial(rank, now))
        assert backlog.first(now) == expected
        gone = rng.choice([expected.job, *waiting])
        del waiting[gone]
        backlog.remove(gone, now)
        assert len(backlog) == len(waiting)
        assert backlog.cost == pytest.approx(len(waiting))
        late = sum(item.on_time_until < now for item in waiting.values())
        assert (backlog.late, backlog.late_cost) == (late, late)


def rank(now: float, item: Waiting) -> tuple[float, ...]:
    return item.on_time_until < now, item.key, item.job


def test_service_at_the_last_call_lets_nobody_in_to_be_late() -> None:
    """Late ones get nothing before it, so who comes and would be late is not told that it gets something."""
    backlog = Backlog()
    backlog.push(called := Waiting(0.0, 0, 1.0, 1.0, 5.0), 0.0)
    backlog.push(early := Waiting(0.0, 1, 1.0, 1.0, 9.0), 0.0)
    for now in (2.0, 6.0):
        backlog.sort_out(now)
    backlog.served(called, 6.0)
    assert backlog.late_drain.stuck
    backlog.served(early, 6.0)
    assert not backlog.late_drain.stuck


def test_jobs_that_left_are_forgotten() -> None:
    backlog = Backlog()
    backlog.push(Waiting(0.0, 0, 1.0, 1e9), 3.0)
    for number in range(1, 5000):
        backlog.push(Waiting(float(number), number, 1.0, float(number % 7)), 3.0)
        backlog.first(3.0)
        backlog.remove(number, 3.0)
    assert len(backlog._turns) + len(backlog._late) + len(backlog._heap) < 400


def test_levels_double() -> None:
    assert [level(attained, 100.0) for attained in (0, 99, 100, 299, 300, 699, 700, 1e9)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert level(1e9, 1.0) == MAX_LEVEL


def order_of(jobs: list[Job], alpha: float = 0.0, now: float = 0.0) -> list[int]:
    """In which order one slot gets them when all came at 0."""
    schedule = Scheduler(TIERS, lambda _: TenantRule(1.0, 99, 99), largest_cost=100.0, alpha=alpha)
    for job in jobs:
        assert schedule.arrive(job, 0.0) == []
    schedule.slots = 1
    order = []
    for _ in jobs:
        decisions: list[Decision] = schedule.decide(now)
        (decision,) = decisions
        assert isinstance(decision, Dispatch)
        order.append(decision.job)
        schedule.finish(decision.job, 1.0, now)
    return order


def test_alpha_weighs_the_expected_time_against_waiting() -> None:
    jobs = [Job(number, "a", "high", 1.0, 1e9, service_s=service_s) for number, service_s in enumerate((3.0, 1.0, 2.0))]
    assert order_of(jobs, alpha=0.0) == [0, 1, 2]
    assert order_of(jobs, alpha=1.0) == [1, 2, 0]


def test_a_reload_changes_alpha_for_what_comes_from_then_on() -> None:
    schedule = Scheduler(TIERS, lambda _: TenantRule(1.0, 99, 99), largest_cost=100.0, alpha=0.0)
    schedule.arrive(Job(0, "a", "high", 1.0, 1e9, service_s=3.0), 0.0)
    schedule.arrive(Job(1, "a", "high", 1.0, 1e9, service_s=1.0), 0.0)
    schedule.configure(TIERS, 1.0)
    schedule.arrive(Job(2, "a", "high", 1.0, 1e9, service_s=3.0), 0.0)
    schedule.arrive(Job(3, "a", "high", 1.0, 1e9, service_s=1.0), 0.0)
    schedule.slots = 4
    assert [decision.job for decision in schedule.decide(0.0)] == [0, 1, 3, 2]


def test_who_came_late_in_time_still_goes_before_who_is_late_already() -> None:
    schedule = Scheduler(TIERS, lambda _: TenantRule(1.0, 99, 99), largest_cost=100.0)
    for number, at in enumerate((0.0, 2.5, 3.0)):
        schedule.arrive(Job(number, "a", "high", 1.0, 1e9), at)
    schedule.slots = 3
    assert [decision.job for decision in schedule.decide(3.2)] == [1, 2, 0]


@pytest.mark.parametrize(("tier", "slice_tokens"), [("high", 1.5 * SLICE_TOKENS), ("low", SLICE_TOKENS)])
def test_a_conversation_that_had_much_sinks_by_a_budget_for_each_level(tier: str, slice_tokens: float) -> None:
    jobs = [
        Job(0, "a", tier, 1.0, 1e9, attained=slice_tokens),
        Job(1, "a", tier, 1.0, 1e9, attained=slice_tokens - 1),
        Job(2, "a", tier, 1.0, 1e9, attained=3 * slice_tokens),
        Job(3, "a", tier, 1.0, 1e9),
    ]
    assert order_of(jobs) == [1, 3, 0, 2]

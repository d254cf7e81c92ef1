"""Who is taken in and what the others are told: estimated starts, hopeless jobs, retry delays."""

from __future__ import annotations

import pytest

from tiermesh.common.errors import Overloaded
from tiermesh.router.jobs import Decision, Dispatch, Job, Refusal, TenantRule, TierRule
from tiermesh.router.scheduler import Scheduler

TIERS = [TierRule("high", 1.0, 0.1), TierRule("low", 5.0, 0.1)]
RULES = {"few": TenantRule(1.0, 99, 2)}


def draining(cost_per_s: float, *, tier: str = "high", waiting: int = 1, max_queued: int = 999) -> Scheduler:
    """At t = 0, with one slot that has been served to tenant `flood` for a minute; so many of its jobs of 10 wait."""
    schedule = Scheduler(
        TIERS, lambda name: RULES.get(name, TenantRule(1.0, 99, 999)), largest_cost=100.0, max_queued=max_queued
    )
    schedule.slots = 1
    step_s = 10.0 / cost_per_s
    count = int(60 / step_s)
    for number in range(-count, waiting + 2):
        schedule.arrive(Job(number - 1000, "flood", tier, 10.0, 1e9), -60.0)
    for number in range(-count, 1):
        (decision,) = schedule.decide(number * step_s)
        schedule.finish(decision.job, 10.0, (number + 1) * step_s)
    schedule.decide(step_s)
    assert schedule.queued(tier) == waiting
    return schedule


def told(decisions: list[Decision]) -> float:
    """The retry delay of a refusal for want of capacity."""
    (decision,) = decisions
    assert isinstance(decision, Refusal)
    assert isinstance(decision.error, Overloaded)
    assert decision.error.retry_after_s is not None
    return decision.error.retry_after_s


def test_a_flood_of_one_tenant_refuses_that_tenant_alone() -> None:
    schedule = draining(20.0, waiting=100)  # 1000 tokens wait: 50 s
    assert told(schedule.arrive(Job(1, "flood", "high", 10.0, 11.0), 1.0)) == 30.0
    assert schedule.arrive(Job(2, "quiet", "high", 10.0, 11.0), 1.0) == []


def test_the_excess_is_what_has_to_drain_first() -> None:
    schedule = draining(20.0, waiting=20)  # 200 tokens wait: about 10 s
    assert told(schedule.arrive(Job(1, "flood", "high", 10.0, 5.0, service_s=1.0), 0.5)) == pytest.approx(6.5, abs=1.0)


def test_those_whom_a_full_queue_sends_away_come_back_in_turn() -> None:
    schedule = draining(20.0, waiting=1)
    schedule.arrive(Job(1, "few", "high", 10.0, 1e9), 1.0)
    schedule.arrive(Job(2, "few", "high", 10.0, 1e9), 1.0)
    delays = [told(schedule.arrive(Job(number, "few", "high", 10.0, 1e9), 1.0)) for number in (3, 4, 5)]
    # Half of 20 tokens per second are its own, so each job of 10 takes a second; the second tenant has one waiting.
    assert delays == pytest.approx([1.0, 2.0, 3.0], rel=0.1)
    assert told(schedule.arrive(Job(6, "few", "high", 10.0, 1e9), 3.0)) == pytest.approx(2.0, rel=0.2)


def test_no_delay_is_longer_than_half_a_minute_or_shorter_than_a_tenth_of_a_second() -> None:
    schedule = draining(20.0, waiting=1)
    schedule.arrive(Job(1, "few", "high", 10.0, 1e9), 1.0)
    schedule.arrive(Job(2, "few", "high", 10.0, 1e9), 1.0)
    delays = [told(schedule.arrive(Job(number, "few", "high", 1.0, 1e9), 1.0)) for number in range(3, 700)]
    assert delays[0] == pytest.approx(0.1, rel=0.1)
    assert delays[-1] == 30.0
    assert delays == sorted(delays)


def test_what_became_hopeless_while_it_waited_is_refused_when_it_is_due() -> None:
    schedule = draining(20.0, waiting=0)
    schedule.slots = 0
    schedule.arrive(Job(1, "a", "high", 10.0, 8.0, service_s=2.0), 3.0)
    schedule.arrive(Job(2, "a", "high", 10.0, 9.0, service_s=2.0), 3.0)
    schedule.slots = 2
    decisions = schedule.decide(6.5)
    assert {decision.job: type(decision) for decision in decisions} == {1: Refusal, 2: Dispatch}
    (refusal,) = (decision for decision in decisions if isinstance(decision, Refusal))
    assert isinstance(refusal.error, Overloaded)


def test_what_did_not_wait_is_tried_however_long_it_should_take() -> None:
    schedule = draining(20.0, waiting=0)
    schedule.slots = 3
    schedule.arrive(Job(1, "a", "high", 10.0, 4.0, service_s=2.0), 3.0)
    assert schedule.decide(3.0) == [Dispatch(1)]


def test_a_low_tier_is_judged_by_its_own_rate() -> None:
    """Nothing of the high tier waits now, but it takes most of the slots: the low one's own rate tells."""
    schedule = draining(1.0, tier="low", waiting=5)  # 50 tokens at 1 per second
    assert told(schedule.arrive(Job(1, "flood", "low", 10.0, 30.0), 5.0)) > 5.0
    assert schedule.arrive(Job(2, "flood", "high", 10.0, 30.0), 5.0) == []


def test_who_is_pushed_out_is_told_when_a_place_is_free_again() -> None:
    schedule = draining(20.0, tier="low", waiting=3, max_queued=10**6)
    schedule._max_queued = schedule.queued("low")
    delay = told(schedule.arrive(Job(1, "a", "high", 10.0, 1e9), 1.0))
    assert delay == pytest.approx(0.5, rel=0.1)

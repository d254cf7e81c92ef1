"""Who is taken in and what the others are told: estimated starts, hopeless jobs, retry delays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tiermesh.common.errors import Overloaded
from tiermesh.router.jobs import Decision, Dispatch, Job, Refusal, TenantRule, TierRule
from tiermesh.router.scheduler import Scheduler

TIERS = [TierRule("high", 99.0, 0.1), TierRule("low", 99.0, 0.1)]
RULES = {"few": TenantRule(1.0, 99, 2), "one": TenantRule(1.0, 1, 999)}


def draining(cost_per_s: float, *, tier: str = "high", waiting: int = 1) -> Scheduler:
    """At t = 0, with one slot that has been served to tenant `flood` for a minute; so many of its jobs of 10 wait."""
    schedule = Scheduler(TIERS, lambda name: RULES.get(name, TenantRule(1.0, 99, 999)), largest_cost=100.0)
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


def request(
    number: int,
    tenant: str,
    tier: str,
    deadline: float,
    cost: float = 10.0,
    service_s: float = 0.0,
    first_s: float = 0.0,
) -> Job:
    """A job that can be known again."""
    return Job(number, tenant, tier, cost, deadline, service_s, first_s, identity=number)


def told(decisions: list[Decision]) -> float:
    """The retry delay of a refusal for want of capacity."""
    (decision,) = decisions
    assert isinstance(decision, Refusal)
    assert isinstance(decision.error, Overloaded)
    assert decision.error.retry_after_s is not None
    return decision.error.retry_after_s


def test_a_flood_of_one_tenant_refuses_that_tenant_alone() -> None:
    schedule = draining(20.0, waiting=60)  # 600 tokens wait: 30 s
    assert told(schedule.arrive(request(1, "flood", "high", 11.0), 0.5)) == pytest.approx(30 * 7 / 8 - 10.5, abs=0.5)
    assert schedule.arrive(request(2, "quiet", "high", 11.0), 0.5) == []


@pytest.mark.parametrize(("tier", "least_s"), [("high", 3.0), ("low", 14.0)])
def test_below_the_highest_tier_who_comes_must_be_sure_to_be_in_time(tier: str, least_s: float) -> None:
    """Even with twice as much before it, where its tier is given half of the pool at best."""
    schedule = draining(20.0, tier=tier, waiting=6)  # 60 tokens wait: 3 s
    assert isinstance(schedule.arrive(request(1, "flood", tier, 0.5 + 0.9 * least_s), 0.5)[0], Refusal)
    schedule = draining(20.0, tier=tier, waiting=6)
    assert schedule.arrive(request(1, "flood", tier, 0.5 + 1.1 * least_s), 0.5) == []


def test_a_tier_that_is_given_nothing_any_more_soon_takes_nobody_in() -> None:
    """What it was given before says less with each moment in which it waits in vain."""
    schedule = draining(20.0, tier="low", waiting=0)
    schedule.slots = 0
    taken = [now for now in range(1, 60) if not schedule.arrive(request(now, "flood", "low", now + 30.0), float(now))]
    assert 1 <= len(taken) <= 8
    assert max(taken) < 12


def test_the_excess_is_what_has_to_drain_first() -> None:
    schedule = draining(20.0, waiting=20)  # 200 tokens wait: about 10 s
    delay_s = told(schedule.arrive(request(1, "flood", "high", 5.0, service_s=1.0), 0.5))
    assert delay_s == pytest.approx(210 / 20 * 7 / 8 - 4.0, abs=0.2)


def test_those_whom_a_full_queue_sends_away_come_back_in_turn() -> None:
    schedule = draining(20.0, waiting=1)
    schedule.arrive(request(1, "few", "high", 1e9), 0.5)
    schedule.arrive(request(2, "few", "high", 1e9), 0.5)
    delays = [told(schedule.arrive(request(number, "few", "high", 1e9), 0.5)) for number in (3, 4)]
    # Half of 20 tokens per second are its own, and a quarter of its queue of 20 is to have drained as well.
    assert delays == pytest.approx([1.5, 2.5], rel=0.1)


def test_no_delay_is_told_where_no_place_is_left() -> None:
    """As many places as the tenant may have requests waiting, none further away than half a minute."""
    schedule = draining(20.0, waiting=1)
    schedule.arrive(request(1, "few", "high", 1e9), 1.0)
    schedule.arrive(request(2, "few", "high", 1e9), 1.0)
    refused = [schedule.arrive(request(number, "few", "high", 1e9), 1.0)[0] for number in range(3, 9)]
    errors = [decision.error for decision in refused if isinstance(decision, Refusal)]
    assert [error.retry_after_s is not None for error in errors] == [True, True, False, False, False, False]
    assert "no place" in errors[-1].message
    schedule = draining(20.0, waiting=100)  # 50 s
    (refusal,) = schedule.arrive(request(1, "flood", "high", 11.0), 1.0)
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, Overloaded)
    assert refusal.error.retry_after_s is None


def test_no_delay_is_told_for_an_answer_that_takes_longer_than_its_time() -> None:
    schedule = draining(20.0, waiting=3)
    (refusal,) = schedule.arrive(request(1, "flood", "high", 3.0, service_s=5.0), 1.0)
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, Overloaded)
    assert refusal.error.retry_after_s is None
    assert "allow more time" in refusal.error.message


def test_a_limit_of_the_tenant_s_own_tells_nothing_of_the_tier() -> None:
    """One at a time, each for two seconds, while the tier has slots to spare: who waits does so for its own limit."""
    schedule = draining(20.0, waiting=0)
    schedule.slots = 50
    for number in range(1, 22):
        schedule.arrive(request(number, "one", "high", 1e9), 1.0)
    schedule.decide(1.0)
    for number in range(1, 20):
        schedule.finish(number, 10.0, 1.0 + 2.0 * number)
        assert schedule.decide(1.0 + 2.0 * number) == [Dispatch(number + 1)]
    # Two of its jobs wait: two seconds each, at its own pace.
    schedule.arrive(request(50, "one", "high", 1e9), 39.0)
    assert told(schedule.arrive(request(51, "one", "high", 40.0), 39.0)) == pytest.approx(4.0 * 7 / 8 - 1.0, rel=0.1)
    assert schedule.arrive(request(52, "one", "high", 46.0), 39.0) == [], "behind the one that is to come back"
    # The tier goes on at 20 tokens per second where slots are what is missing.
    schedule.slots = 0
    for number in range(60, 80):
        schedule.arrive(request(number, "other", "high", 1e9), 39.0)
    assert told(schedule.arrive(request(81, "other", "high", 44.0), 39.0)) == pytest.approx(6.5, rel=0.2)


def test_who_can_not_be_in_time_is_taken_as_long_as_late_ones_are_served() -> None:
    """Late ones go last; while nothing is left for them, nobody is taken in to join them.

    Those who are late when an overload ends leave little room to who comes until they are served or out of time.
    """
    tiers = [TierRule("only", 2.0, 0.1)]
    schedule = Scheduler(tiers, lambda _: TenantRule(1.0, 99, 999), largest_cost=100.0)
    schedule.slots = 1
    number = 0
    verdicts = []
    for step in range(600):
        now = 0.1 * step
        for decision in schedule.decide(now):
            if isinstance(decision, Dispatch):
                schedule.finish(decision.job, 10.0, now + 0.1)
        for _ in range(2 if 100 <= step < 200 else 1):  # twice the capacity for ten seconds
            number += 1
            refused = schedule.arrive(Job(number, "a", "only", 10.0, now + 30.0), now + 0.1)
            verdicts.append((now, bool(refused)))
    assert not any(refused for now, refused in verdicts if now < 11)
    assert any(refused for now, refused in verdicts if 15 < now < 20)
    assert sum(refused for now, refused in verdicts if 25 < now < 45) < 0.1 * 200
    assert not any(refused for now, refused in verdicts if now > 45)


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
    schedule = draining(2.0, tier="low", waiting=5)  # 50 tokens at 2 per second
    assert told(schedule.arrive(request(1, "flood", "low", 30.0), 5.0)) > 5.0
    assert schedule.arrive(request(2, "flood", "high", 30.0), 5.0) == []


def test_who_is_pushed_out_is_told_when_a_place_is_free_again() -> None:
    schedule = draining(20.0, tier="low", waiting=2)
    schedule._max_queued = 3
    schedule.arrive(request(1, "flood", "low", 1e9), 0.5)
    (refusal,) = schedule.arrive(request(2, "a", "high", 1e9), 0.5)
    assert refusal.job == 1
    assert told([refusal]) == pytest.approx(0.75, rel=0.1), "its own turn, and a quarter of the two that wait"


def test_a_tier_is_sure_of_its_share_alone_once_the_tiers_above_fill_the_pool() -> None:
    """Fifty tokens wait: at the rate of the last minute 2.5 s, at a share of a tenth of it 25."""
    schedule = draining(20.0, tier="low", waiting=5)
    assert schedule.would_take(request(1, "flood", "low", 20.5), 0.5)
    schedule.arrive(request(2, "a", "high", 1e9), 0.5)
    schedule.arrive(request(3, "a", "high", 1e9), 0.6)
    assert not schedule.would_take(request(4, "flood", "low", 20.6), 0.6)
    assert schedule.would_take(request(4, "a", "high", 20.6), 0.6)


def test_what_waits_for_its_tenant_s_own_limit_asks_nothing_of_the_pool() -> None:
    schedule = draining(20.0, tier="low", waiting=5)
    (running,) = schedule.running_costs
    schedule.slots = 3
    schedule.decide(0.5)
    schedule.finish(running, 10.0, 0.5)
    for number in range(2, 40):
        schedule.arrive(request(number, "one", "high", 1e9), 0.5)
        schedule.decide(0.5)
    schedule.decide(0.6)
    assert (schedule.running_in("high"), schedule.queued("high")) == (1, 37)
    above = schedule._demand.above("low")
    assert above == pytest.approx(1 / 3), "of three slots it may have one"


def test_who_comes_back_to_its_place_is_held_to_less_than_who_comes_first() -> None:
    schedule = draining(20.0, tier="low", waiting=30)
    back_at = 0.5 + told(schedule.arrive(request(1, "flood", "low", 20.5), 0.5))
    now = 0.5
    while now < back_at:  # at the rate that the promise was made by
        now += 0.5
        (running,) = schedule.running_costs
        schedule.finish(running, 10.0, now)
        schedule.decide(now)
    assert not schedule.would_take(request(2, "flood", "low", now + 20.0), now)
    assert schedule.would_take(request(1, "flood", "low", now + 20.0), now)


def test_an_answer_that_may_take_long_is_taken_only_where_that_fits_too() -> None:
    schedule = draining(20.0, tier="low", waiting=2)
    job = request(1, "flood", "low", 8.5, service_s=1.0)
    assert schedule.would_take(job, 0.5)
    assert not schedule.would_take(replace(job, slow_s=6.0), 0.5)

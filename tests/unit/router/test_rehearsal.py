"""A rehearsal says what then happens, and changes nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import fields, is_dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.errors import TiermeshError
from tiermesh.router.jobs import Dispatch, Job, Refusal, TenantRule, TierRule
from tiermesh.router.rehearsal import rehearse
from tiermesh.router.scheduler import Scheduler

TIERS = (TierRule("realtime", 0.05, 0.2), TierRule("standard", 0.2, 0.1), TierRule("batch", 1.0, 0.05))
RULES = {"a": TenantRule(1.0, 4, 6), "b": TenantRule(2.0, 2, 4), "c": TenantRule(0.5, 8, 30)}
NAMES = st.sampled_from(sorted(RULES))
TIER_NAMES = st.sampled_from([tier.name for tier in TIERS])


def state(value: object) -> object:
    """All that an object holds, as values that compare."""
    if isinstance(value, TiermeshError):
        return repr(value), value.retry_after_s
    if isinstance(value, dict):
        return [(key, state(one)) for key, one in value.items()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [state(one) for one in value]
    if is_dataclass(value):
        return [state(getattr(value, field.name)) for field in fields(value)]
    if type(value).__module__.startswith("tiermesh.router"):
        return type(value).__name__, state(vars(value))
    return value


def verdict(decision: object) -> tuple[str, object]:
    if isinstance(decision, Refusal):
        return decision.error.reason, (decision.error.message, decision.error.retry_after_s)
    return ("dispatch", None) if isinstance(decision, Dispatch) else ("waits", None)


events = st.lists(
    st.one_of(
        st.tuples(st.just("job"), NAMES, TIER_NAMES, st.floats(1, 6000), st.floats(0.01, 30), st.floats(0, 3)),
        st.tuples(st.just("finish"), st.floats(0, 5000)),
        st.tuples(st.just("slots"), st.integers(0, 6)),
        st.tuples(st.just("wait"), st.floats(0.01, 4)),
    ),
    max_size=60,
)


@settings(max_examples=120)
@given(events, NAMES, TIER_NAMES, st.floats(1, 6000), st.floats(0.0, 20), st.floats(0, 3))
def test_the_verdict_is_what_then_happens_and_nothing_changes(
    before: list[tuple[object, ...]], tenant: str, tier: str, cost: float, left_s: float, service_s: float
) -> None:
    schedule, now, number = Scheduler(TIERS, RULES.__getitem__, largest_cost=4096.0, max_queued=20), 0.0, 0
    schedule.slots, schedule.room = 3, 2
    running: list[int] = []
    for event in before:
        decisions = []
        match event:
            case ("job", str(who), str(where), float(size), float(left), float(takes)):
                number += 1
                decisions = schedule.arrive(Job(number, who, where, size, now + left, takes, takes / 4), now)
            case ("finish", float(actual)) if running:
                schedule.finish(running.pop(0), actual, now)
            case ("slots", int(slots)):
                schedule.slots = slots
            case ("wait", float(seconds)):
                now += seconds
        decisions += schedule.decide(now)
        running += [one.job for one in decisions if isinstance(one, Dispatch)]
    seen = state(schedule)
    job = Job(number + 1, tenant, tier, cost, now + left_s, service_s, service_s / 4)
    rehearsed = rehearse(schedule, job, now)
    assert state(schedule) == seen

    decisions = [*schedule.arrive(job, now), *schedule.decide(now)]
    mine = next((one for one in decisions if one.job == job.number), None)
    if rehearsed.error is not None:
        assert verdict(mine) == verdict(Refusal(job.number, rehearsed.error))
        return
    assert verdict(mine) == (("dispatch", None) if rehearsed.wait_s == 0.0 else ("waits", None))
    running += [one.job for one in decisions if isinstance(one, Dispatch)]
    ahead = 0
    while mine is None and (costs := schedule.running_costs):
        first = next(iter(costs))
        schedule.finish(first, costs[first], now)
        for one in schedule.decide(now):
            mine = mine or (one if one.job == job.number else None)
            ahead += isinstance(one, Dispatch) and mine is None
    if isinstance(mine, Dispatch):
        assert ahead == rehearsed.place


def test_who_presses_is_told_that_it_starts_though_no_slot_is_free() -> None:
    schedule = Scheduler(TIERS, RULES.__getitem__, largest_cost=4096.0)
    schedule.slots = schedule.room = 1
    schedule.arrive(Job(1, "a", "batch", 10.0, 100.0), 0.0)
    schedule.decide(0.0)
    waits = {
        first_s: rehearse(schedule, Job(9, "b", "realtime", 10.0, 9.0, 0.1, first_s), 0.0) for first_s in (0.0, 0.04)
    }
    assert waits[0.0].wait_s is None
    assert waits[0.04].wait_s == 0.0


def test_a_higher_tier_is_told_a_better_place() -> None:
    schedule = Scheduler(TIERS, {"a": TenantRule(1.0, 9, 99)}.__getitem__, largest_cost=4096.0)
    schedule.slots = 1
    for number in range(1, 6):
        schedule.arrive(Job(number, "a", "standard", 10.0, 100.0), 0.0)
        schedule.decide(0.0)
    places = {
        tier: rehearse(schedule, Job(9, "a", tier, 10.0, 100.0), 0.0).place
        for tier in ("realtime", "standard", "batch")
    }
    assert places == {"realtime": 0, "standard": 4, "batch": 4}

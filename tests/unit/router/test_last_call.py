"""Who is taken in is brought home: at its last call a job goes before its turn, as far as bounds and realtime allow."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.router.backlog import Waiting
from tiermesh.router.fair import FairQueue
from tiermesh.router.jobs import Dispatch, Job, TenantRule, TierRule
from tiermesh.router.lags import lag_bound, wait_bound
from tiermesh.router.scheduler import Scheduler

C_MAX = 100.0
TIERS = [TierRule("high", 2.0, 0.2), TierRule("middle", 20.0, 0.1), TierRule("low", 20.0, 0.05)]
FREE = TenantRule(1.0, 999, 999)
CALLED_S = 8.25
"""After which a job that came at 0 has had its last call; see `late_job`."""


def schedule_of(*jobs: Job) -> Scheduler:
    """One in which all came at 0."""
    made = Scheduler(TIERS, lambda _: FREE, largest_cost=C_MAX)
    for job in jobs:
        assert made.arrive(job, 0.0) == []
    return made


def late_job(number: int, tenant: str, tier: str, cost: float = 50.0) -> Job:
    """It takes 1 s, must have ended after 11, and is called after 8, when three times as long as it takes is left, or
    after 7.5, three quarters of the time in which it must start: after the later."""
    return Job(number, tenant, tier, cost, deadline=11.0, service_s=1.0)


def relaxed(number: int, tenant: str, tier: str, cost: float = 50.0) -> Job:
    return Job(number, tenant, tier, cost, deadline=1e6, service_s=1.0)


def next_of(schedule: Scheduler, now: float) -> int:
    """Whom one more slot goes to."""
    schedule.slots += 1
    (decision,) = schedule.decide(now)
    assert isinstance(decision, Dispatch)
    return decision.job


def test_it_goes_before_other_tenants_and_before_higher_tiers() -> None:
    jobs = [relaxed(0, "a", "middle"), relaxed(1, "b", "middle"), late_job(2, "c", "low"), late_job(3, "d", "middle")]
    schedule = schedule_of(*jobs)
    assert next_of(schedule, CALLED_S - 0.5) == 0
    assert [next_of(schedule, CALLED_S) for _ in range(3)] == [3, 2, 1]


def test_it_waits_while_the_highest_tier_presses() -> None:
    schedule = schedule_of(late_job(0, "c", "low"))
    for number in (1, 2):  # half a second is left of their budget of two
        schedule.arrive(relaxed(number, "a", "high"), CALLED_S - 1.5)
    assert [next_of(schedule, CALLED_S) for _ in range(3)] == [1, 2, 0]
    schedule = schedule_of(late_job(0, "c", "low"))
    schedule.arrive(relaxed(1, "a", "high"), CALLED_S - 0.5)
    assert [next_of(schedule, CALLED_S) for _ in range(2)] == [0, 1]


def test_of_four_dispatches_one_is_a_call_even_while_the_highest_tier_presses() -> None:
    schedule = schedule_of(*(late_job(number, "c", "low") for number in range(2)))
    for number in range(2, 12):
        schedule.arrive(relaxed(number, "a", "high"), CALLED_S - 1.5)
    order = [next_of(schedule, CALLED_S) for _ in range(12)]
    first, second = order.index(0), order.index(1)
    assert first == 4
    assert second == first + 4


def test_of_the_highest_tier_it_goes_before_those_that_press() -> None:
    schedule = schedule_of(late_job(0, "a", "high"))
    schedule.arrive(relaxed(1, "a", "high"), CALLED_S - 1.5)
    assert next_of(schedule, CALLED_S) == 0


def test_a_short_deadline_alone_puts_nobody_before_others() -> None:
    """Who needs 1 s of 1.5 has waited too long after three eighths of a second, not when it comes."""
    schedule = schedule_of(relaxed(0, "a", "middle"), relaxed(1, "b", "middle"))
    schedule.arrive(Job(2, "c", "low", 50.0, deadline=1.5, service_s=1.0), 0.0)
    assert next_of(schedule, 0.3) == 0
    assert next_of(schedule, 0.4) == 2


def test_it_puts_its_tenant_no_further_ahead_than_a_turn_can() -> None:
    """A turn costs c_max at most; two of these are all that another tenant must let go before it."""
    schedule = schedule_of(*(late_job(number, "hurried", "low") for number in range(9)), relaxed(9, "calm", "low"))
    assert [next_of(schedule, CALLED_S) for _ in range(3)] == [0, 1, 9]


def test_many_at_their_last_call_keep_no_tier_waiting_beyond_its_bound() -> None:
    calls = [late_job(number, "a", "low", C_MAX) for number in range(300)]
    schedule = schedule_of(*calls)
    for number in range(300, 600):
        schedule.arrive(relaxed(number, "b", "high" if number % 2 else "middle", C_MAX), CALLED_S - 0.5)
    waited = dict.fromkeys(schedule.lags, 0.0)
    served: dict[str, int] = dict.fromkeys(schedule.lags, 0)
    for _ in range(400):
        number = next_of(schedule, CALLED_S)
        of = "low" if number < 300 else "high" if number % 2 else "middle"
        served[of] += 1
        for tier in TIERS:
            waited[tier.name] = 0.0 if tier.name == of else waited[tier.name] + C_MAX
            assert waited[tier.name] <= wait_bound(TIERS, tier, C_MAX)
            assert schedule.lags[tier.name] <= lag_bound(TIERS, C_MAX)
    assert served["low"] > 200, "calls did go first"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_the_first_called_is_found_whatever_happened_before(seed: int) -> None:
    rng = random.Random(seed)
    queue, waiting, limited = FairQueue(), dict[int, tuple[str, Waiting]](), set[str]()
    now = 0.0
    for number in range(80):
        now += rng.uniform(0, 0.5)
        tenant = rng.choice("abc")
        match rng.choice(["push", "push", "remove", "limit", "free", "charge"]):
            case "push":
                item = Waiting(
                    rng.random(), number, rng.uniform(1, 60), now + rng.uniform(0, 4), now + rng.uniform(0, 4)
                )
                queue.push(tenant, item, 1.0, now)
                waiting[number] = tenant, item
            case "remove" if waiting:
                gone = rng.choice(sorted(waiting))
                queue.remove(waiting.pop(gone)[0], gone, now)
            case "limit":
                queue.limit(tenant)
                limited.add(tenant)
            case "free":
                queue.free(tenant)
                limited.discard(tenant)
            case "charge":
                queue.charge(tenant, rng.uniform(-5, 60))
        if not queue.has_eligible:
            continue
        found = queue.called(now, C_MAX)
        counters = {t: queue._all[t].counter for t, _ in waiting.values() if t not in limited}
        may = [
            (item.last_call, item.job)
            for t, item in waiting.values()
            if t in counters and item.last_call < now and counters[t] - min(counters.values()) + item.cost <= C_MAX
        ]
        assert (found is None) == (not may)
        if found is not None:
            assert found == waiting[min(may)[1]]


def test_jobs_that_left_are_forgotten() -> None:
    queue = FairQueue()
    queue.push("a", Waiting(0.0, 0, 1.0, 1e9), 1.0, 0.0)
    for number in range(1, 5000):
        queue.push("a", Waiting(0.0, number, 1.0, math.inf, float(number % 7)), 1.0, 3.0)
        queue.called(3.0, C_MAX)
        queue.remove("a", number, 3.0)
    assert len(queue._calls) + len(queue._called) < 400

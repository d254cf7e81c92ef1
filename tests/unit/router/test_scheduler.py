"""The schedule's rules one by one; its invariants are in `test_schedule_bounds.py`."""

from __future__ import annotations

import random

import pytest

from tiermesh.common.errors import DeadlineExceeded, NoWorkers, Overloaded
from tiermesh.router.jobs import Job, Refusal, TenantRule, TierRule
from tiermesh.router.lags import lag_bound
from tiermesh.router.scheduler import Scheduler

C_MAX = 100.0
TIERS = [TierRule("high", 0.05, 0.2), TierRule("middle", 0.2, 0.1), TierRule("low", 1.0, 0.05)]
FREE = TenantRule(weight=1.0, concurrent=10**6, queued=10**6)


def scheduler(rules: dict[str, TenantRule] | None = None, slots: int = 1, max_queued: int = 10**6) -> Scheduler:
    made = Scheduler(TIERS, lambda name: (rules or {}).get(name, FREE), largest_cost=C_MAX, max_queued=max_queued)
    made.slots = slots
    return made


def job(number: int, tenant: str = "a", tier: str = "high", cost: float = 10.0, deadline: float = 1e9) -> Job:
    return Job(number, tenant, tier, cost, deadline)


def served(schedule: Scheduler, count: int, rng: random.Random, refill: list[tuple[str, str]]) -> list[Job]:
    """Dispatches one at a time while each (tenant, tier) pair always has a job waiting."""
    order: list[Job] = []
    jobs: dict[int, Job] = {}
    for tenant, tier in refill * 2:
        new = job(len(jobs), tenant, tier, rng.uniform(5, C_MAX))
        jobs[new.number] = new
        assert not schedule.arrive(new, 0.0)
    while len(order) < count:
        for decision in schedule.decide(0.0):
            done = jobs[decision.job]
            order.append(done)
            schedule.finish(done.number, done.cost, 0.0)
            new = job(len(jobs), done.tenant, done.tier, rng.uniform(5, C_MAX))
            jobs[new.number] = new
            assert not schedule.arrive(new, 0.0)
    return order


@pytest.mark.parametrize("seed", range(5))
def test_a_tier_that_always_waits_gets_its_share(seed: int) -> None:
    """Up to the lag that it may be owed at the end, see `lags.py`."""
    order = served(scheduler(), 3000, random.Random(seed), [("a", tier.name) for tier in TIERS])
    total = sum(done.cost for done in order)
    for tier in TIERS:
        assert sum(d.cost for d in order if d.tier == tier.name) >= tier.min_share * total - lag_bound(TIERS, C_MAX)
    assert sum(d.tier == "high" for d in order) > len(order) * 0.6, "the rest goes to the highest"


def test_without_need_for_shares_the_order_of_tiers_is_strict() -> None:
    schedule = scheduler()
    for number, tier in enumerate(["low", "middle", "high"]):
        schedule.arrive(job(number, tier=tier), 0.0)
    order = []
    for _ in range(3):
        (decision,) = schedule.decide(0.0)
        order.append(decision.job)
        schedule.finish(decision.job, 10.0, 0.0)
    assert order == [2, 1, 0]


def test_a_tenant_that_was_away_saves_nothing_up() -> None:
    rng = random.Random(0)
    schedule = scheduler()
    served(schedule, 500, rng, [("a", "high")])
    for number in range(10_000, 10_050):
        schedule.arrive(job(number, "late", cost=50), 0.0)
    run = []
    for _ in range(40):
        (decision,) = schedule.decide(0.0)
        run.append(decision.job)
        schedule.finish(decision.job, 50.0, 0.0)
        schedule.arrive(job(20_000 + len(run), "a", cost=50), 0.0)
    assert 12 <= sum(number < 20_000 and number >= 10_000 for number in run) <= 28


def test_what_was_misjudged_is_put_right() -> None:
    schedule = scheduler()
    schedule.arrive(job(0, "a", cost=10), 0.0)
    schedule.arrive(job(1, "b", cost=10), 0.0)
    assert [d.job for d in schedule.decide(0.0)] == [0]
    schedule.arrive(job(2, "a", cost=10), 0.0)
    schedule.finish(0, 90.0, 0.0)  # nine times what was charged
    for number in range(3, 12):
        schedule.arrive(job(number, "b", cost=10), 0.0)
    order = []
    for _ in range(8):
        (decision,) = schedule.decide(0.0)
        order.append(decision.job)
        schedule.finish(decision.job, 10.0, 0.0)
    assert 2 not in order


def test_inside_a_tenant_what_came_first_goes_first() -> None:
    schedule = scheduler()
    for number in range(3):
        schedule.arrive(job(number), float(number))
    assert [schedule.decide(5.0)[0].job, schedule.finish(0, 1, 5.0), schedule.decide(5.0)[0].job] == [0, None, 1]


def drained(cost: float, seconds: float) -> Scheduler:
    """A scheduler that has seen this much cost finish per second while a job waited."""
    schedule = Scheduler([TierRule("slow", 99.0, 0.2)], lambda _: FREE, largest_cost=C_MAX)
    schedule.slots = 1
    for number in range(3):
        schedule.arrive(job(number, tier="slow", cost=cost), 0.0)
    schedule.decide(0.0)
    schedule.finish(0, cost, seconds)
    schedule.decide(seconds)
    return schedule


def test_what_can_not_be_done_in_time_is_refused_with_the_excess_as_delay() -> None:
    schedule = drained(cost=50, seconds=5.0)  # 10 tokens per second; 50 wait
    (refusal,) = schedule.arrive(Job(9, "a", "slow", 10, deadline=5.0 + 4.0, service_s=1.0, identity=9), 5.0)
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, Overloaded)
    # An eighth of the wait is taken off: who comes as told is judged by less than the whole of it.
    assert refusal.error.retry_after_s == pytest.approx(5.0 * 7 / 8 + 1.0 - 4.0, rel=0.1)
    assert schedule.arrive(Job(10, "b", "slow", 10, deadline=5.0 + 8.0, service_s=1.0), 5.0) == []


def test_an_idle_scheduler_refuses_nobody_on_a_guess() -> None:
    assert scheduler().arrive(Job(0, "a", "high", 10, deadline=0.1, service_s=100.0), 0.0) == []


def test_a_full_queue_gives_way_to_a_higher_tier_only() -> None:
    schedule = scheduler(slots=0, max_queued=3)
    for number, tier in enumerate(["middle", "low", "low"]):
        schedule.arrive(job(number, tier=tier), float(number))
    (pushed,) = schedule.arrive(job(3, tier="high"), 3.0)
    assert isinstance(pushed, Refusal)
    assert pushed.job == 2
    (refused,) = schedule.arrive(job(4, tier="low"), 4.0)
    assert isinstance(refused, Refusal)
    assert refused.job == 4


def test_a_pressing_job_of_the_highest_tier_runs_beyond_the_slots() -> None:
    """Its budget is 0.05 s: it presses after half of that, and is late when all of it has gone by."""
    schedule = scheduler(slots=1)
    schedule.room = 1
    schedule.arrive(job(0, tier="low"), 0.0)
    assert [decision.job for decision in schedule.decide(0.0)] == [0]
    for number in (1, 2):
        schedule.arrive(job(number), 1.0)
    assert schedule.decide(1.0) == []
    assert schedule.wake_at == pytest.approx(1.025)
    assert schedule.decide(1.02) == []
    assert [decision.job for decision in schedule.decide(1.03)] == [1]
    assert schedule.decide(1.04) == []
    schedule.finish(1, 10.0, 1.06)
    assert schedule.decide(1.06) == [], "it is late already"
    schedule.finish(0, 10.0, 1.07)
    assert [decision.job for decision in schedule.decide(1.07)] == [2]


def test_where_only_the_highest_tier_runs_nobody_would_give_way() -> None:
    schedule = scheduler(slots=1)
    schedule.room = 1
    for number in range(2):
        schedule.arrive(job(number), 0.0)
    assert [decision.job for decision in schedule.decide(0.0)] == [0]
    assert schedule.decide(0.03) == []
    assert schedule.wake_at == 1e9


def test_a_job_that_only_its_tenants_limit_keeps_opens_no_room() -> None:
    schedule = scheduler({"a": TenantRule(1.0, 1, 99)}, slots=2)
    schedule.room = 1
    schedule.arrive(job(0, "a"), 0.0)
    schedule.arrive(job(1, "b", "low"), 0.0)
    schedule.decide(0.0)
    schedule.arrive(job(2, "a"), 0.0)
    schedule.arrive(job(3, "b", "low"), 0.0)
    assert schedule.decide(0.03) == []
    schedule.arrive(job(4, "c"), 0.03)
    assert schedule.decide(0.04) == []
    assert [decision.job for decision in schedule.decide(0.06)] == [4]


def test_the_next_deadline_is_that_of_a_waiting_job() -> None:
    schedule = scheduler(slots=0)
    schedule.arrive(job(0, deadline=3.0), 0.0)
    schedule.arrive(job(1, deadline=2.0), 0.0)
    assert schedule.wake_at == 2.0
    schedule.cancel(1, 0.0)
    assert schedule.wake_at == 3.0
    (late,) = schedule.decide(3.0)
    assert isinstance(late, Refusal)
    assert isinstance(late.error, DeadlineExceeded)
    assert schedule.wake_at is None


def test_deadlines_of_jobs_that_left_are_forgotten() -> None:
    schedule = scheduler()
    for number in range(5000):
        schedule.arrive(job(number), 0.0)
        schedule.decide(0.0)
        schedule.finish(number, 1.0, 0.0)
    assert len(schedule._deadlines) < 200


def test_all_may_be_refused_at_once() -> None:
    schedule = scheduler(slots=0)
    for number, tier in enumerate(TIERS):
        schedule.arrive(job(number, tier=tier.name), 0.0)
    decisions = schedule.refuse_all(NoWorkers("gone"))
    assert sorted(decision.job for decision in decisions) == [0, 1, 2]
    assert schedule.decide(1e12) == []


def test_another_limit_of_a_tenant_counts_from_the_reload_on() -> None:
    rules = {"a": TenantRule(1.0, 1, 99)}
    schedule = scheduler(rules, slots=9)
    for number in range(5):
        schedule.arrive(job(number), 0.0)
    assert [decision.job for decision in schedule.decide(0.0)] == [0]
    rules["a"] = TenantRule(1.0, 3, 99)
    schedule.configure(TIERS, 0.0)
    assert [decision.job for decision in schedule.decide(0.0)] == [1, 2]
    rules["a"] = TenantRule(1.0, 2, 99)
    schedule.configure(TIERS, 0.0)
    schedule.finish(0, 1.0, 0.0)
    assert schedule.decide(0.0) == []
    schedule.finish(1, 1.0, 0.0)
    assert [decision.job for decision in schedule.decide(0.0)] == [3]

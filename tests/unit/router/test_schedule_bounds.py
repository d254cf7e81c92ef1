"""The schedule's invariants over random workloads: one outcome per job, work conserving, bounded lag and waiting, even
service, nothing late, slots free, and beyond the slots only what pressing jobs of the highest tier give cause for.

Each bound is derived where its rule is: `router/lags.py` for tiers, `router/fair.py` for tenants.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tiermesh.common.errors import DeadlineExceeded
from tiermesh.router.jobs import Dispatch, Job, Refusal, TenantRule, TierRule
from tiermesh.router.lags import lag_bound, wait_bound
from tiermesh.router.scheduler import Scheduler

C_MAX = 100.0
TIERS = [TierRule("high", 0.05, 0.2), TierRule("middle", 0.2, 0.1), TierRule("low", 1.0, 0.05)]
FREE = TenantRule(weight=1.0, concurrent=10**6, queued=10**6)


def scheduler(rules: dict[str, TenantRule] | None = None, slots: int = 1, max_queued: int = 10**6) -> Scheduler:
    made = Scheduler(TIERS, lambda name: (rules or {}).get(name, FREE), largest_cost=C_MAX, max_queued=max_queued)
    made.slots = slots
    return made


def eligible_waiting(model: Model, tier: str) -> set[str]:
    """Tenants with a job in this tier that only a slot keeps from running."""
    of = [model.jobs[number].tenant for number in model.running]
    waiting = {model.jobs[number].tenant for number in model.waiting if model.jobs[number].tier == tier}
    return {tenant for tenant in waiting if of.count(tenant) < model.rules[tenant].concurrent}


def presses(model: Model) -> bool:
    """Whether a job of the highest tier that only a slot keeps from running will be late within half of its budget."""
    highest = TIERS[0]
    tenants = eligible_waiting(model, highest.name)
    jobs = [model.jobs[number] for number in model.waiting]
    own = [job for job in jobs if job.tier == highest.name and job.tenant in tenants]
    late_in = [model.came[job.number] + highest.ttft_s - job.first_s - model.now for job in own]
    return any(0 <= left_s <= highest.ttft_s / 2 for left_s in late_in)


class Model:
    """Drives a scheduler as its owner would, and checks what must always hold."""

    def __init__(self, rules: dict[str, TenantRule], slots: int, max_queued: int = 10**6) -> None:
        self.rules = rules
        self.scheduler = scheduler(rules, slots, max_queued)
        self.now = 0.0
        self.jobs: dict[int, Job] = {}
        self.came: dict[int, float] = {}
        self.actual: dict[int, float] = {}
        self.waiting: set[int] = set()
        self.running: set[int] = set()
        self.outcomes: dict[int, str] = {}
        self.told: list[tuple[float, Job]] = []
        """Who was told when to come back."""
        self.most_running = 0
        self.passed_over = dict.fromkeys((tier.name for tier in TIERS), 0.0)
        """Cost that others were given since a tier began to wait."""
        self.service: dict[tuple[str, str], float] = {}
        """By tier and tenant: what its dispatched jobs cost in the end, per weight."""
        self.gaps: dict[tuple[str, str, str], list[float]] = {}
        """By tier and two tenants that wait: the least and the greatest difference of their service since they do."""

    def take(self, decisions: list[Dispatch | Refusal]) -> None:
        for decision in decisions:
            assert decision.job not in self.outcomes, "one outcome per job"
            waited = {tier.name: eligible_waiting(self, tier.name) for tier in TIERS}
            if isinstance(decision, Dispatch) and len(self.running) >= self.scheduler.slots:
                assert presses(self), "nothing runs beyond the slots without a pressing job of the highest tier"
                assert self.has_room, "nor beyond the room"
            self.waiting.discard(decision.job)
            if isinstance(decision, Dispatch):
                self.dispatched(self.jobs[decision.job], waited)
            else:
                if isinstance(decision.error, DeadlineExceeded):
                    assert self.jobs[decision.job].deadline <= self.now, "only what is late is called late"
                elif (delay_s := decision.error.retry_after_s) is not None:
                    assert 0 < delay_s <= 30
                    self.told.append((self.now + delay_s, self.jobs[decision.job]))
                self.outcomes[decision.job] = "refused"
            self.check_gaps()

    @property
    def has_room(self) -> bool:
        """Whether one more may run beyond the slots: there is room for it, and a lower tier may give way."""
        slots = self.scheduler.slots
        of_highest = sum(self.jobs[number].tier == TIERS[0].name for number in self.running)
        return of_highest < slots <= len(self.running) < slots + self.scheduler.room

    def dispatched(self, job: Job, waited: dict[str, set[str]]) -> None:
        assert job.deadline > self.now, "nothing is dispatched after its deadline"
        assert job.tenant in waited[job.tier], "nothing is dispatched beyond its tenant's limit"
        self.outcomes[job.number] = "dispatched"
        self.running.add(job.number)
        self.most_running = max(self.most_running, len(self.running))
        for tier in TIERS:
            served = tier.name == job.tier or not waited[tier.name]
            self.passed_over[tier.name] = 0.0 if served else self.passed_over[tier.name] + min(job.cost, C_MAX)
            assert self.passed_over[tier.name] <= wait_bound(TIERS, tier, C_MAX)
        key = (job.tier, job.tenant)
        self.service[key] = self.service.get(key, 0.0) + self.actual[job.number] / self.rules[job.tenant].weight

    def check_gaps(self) -> None:
        gaps = {}
        for tier in TIERS:
            if not eligible_waiting(self, tier.name):
                self.passed_over[tier.name] = 0.0  # its wait is over, also where the last of it was cancelled
            for a, b in itertools.combinations(sorted(eligible_waiting(self, tier.name)), 2):
                gap = self.service.get((tier.name, a), 0.0) - self.service.get((tier.name, b), 0.0)
                low, high = self.gaps.get((tier.name, a, b), (gap, gap))
                gaps[tier.name, a, b] = [min(low, gap), max(high, gap)]
                assert gaps[tier.name, a, b][1] - gaps[tier.name, a, b][0] <= self.service_bound(a, b) + 1e-6
        self.gaps = gaps

    def service_bound(self, a: str, b: str) -> float:
        """As `fair.py` states it: 2·c_max ÷ w + 2·R·e."""
        weight = min(self.rules[a].weight, self.rules[b].weight)
        errors = [abs(self.actual[job.number] - min(job.cost, C_MAX)) / weight for job in self.jobs.values()]
        return 2 * C_MAX / weight + 2 * self.most_running * max(errors)

    def settle(self) -> None:
        self.take(self.scheduler.decide(self.now))
        assert len(self.running) == self.scheduler.running
        assert len(self.waiting) == sum(self.scheduler.queued(tier.name) for tier in TIERS)
        assert not (self.has_room and presses(self)), "no room idles while a job of the highest tier presses"
        for tier in TIERS:
            if self.scheduler.running < self.scheduler.slots:
                assert not eligible_waiting(self, tier.name), "no slot idles while an eligible job waits"
            asking = eligible_waiting(self, tier.name)
            count = sum(self.jobs[job].tier == tier.name and self.jobs[job].tenant in asking for job in self.waiting)
            assert self.scheduler._queues[tier.name].eligible == count
            if not self.scheduler.queued(tier.name):
                assert self.scheduler.lags[tier.name] == 0
            assert self.scheduler.lags[tier.name] <= lag_bound(TIERS, C_MAX)

    def arrive(
        self,
        tenant: str,
        tier: str,
        cost: float,
        patience_s: float,
        actual: float,
        service_s: float = 0.0,
        first_s: float = 0.0,
    ) -> None:
        number = len(self.jobs)
        self.come(Job(number, tenant, tier, cost, self.now + patience_s, service_s, first_s, number + 1), actual)

    def come(self, new: Job, actual: float) -> None:
        self.jobs[new.number] = new
        self.came[new.number] = self.now
        self.actual[new.number] = actual
        self.waiting.add(new.number)
        would = self.scheduler.would_take(new, self.now)
        self.take(self.scheduler.arrive(new, self.now))
        assert would == (self.outcomes.get(new.number) != "refused"), "a dry run tells what will be"

    def come_back(self, pick: int, early: bool) -> None:
        """Somebody who was told when, or before that."""
        if self.told:
            due, old = self.told.pop(pick % len(self.told))
            self.now = self.now if early else max(self.now, due)
            self.settle()
            again = replace(old, number=len(self.jobs), deadline=self.now + 10.0)
            self.come(again, self.actual[old.number])

    def finish(self, pick: int) -> None:
        if self.running:
            number = sorted(self.running)[pick % len(self.running)]
            self.running.discard(number)
            self.scheduler.finish(number, self.actual[number], self.now)

    def cancel(self, pick: int) -> None:
        if self.waiting:
            number = sorted(self.waiting)[pick % len(self.waiting)]
            assert self.scheduler.cancel(number, self.now)
            self.waiting.discard(number)
            self.outcomes[number] = "cancelled"
            self.check_gaps()

    def run_out(self) -> None:
        """Until nothing waits or runs."""
        self.scheduler.slots = max(1, self.scheduler.slots)
        while self.waiting or self.running:
            self.settle()
            self.now += 0.1
            self.finish(0)
        assert self.scheduler.running == 0, "slots return to zero"
        assert set(self.outcomes) == set(self.jobs), "one outcome per job"


COSTS = st.floats(1, 150)
STEPS = st.one_of(
    st.tuples(
        st.just("arrive"),
        st.sampled_from("abc"),
        st.sampled_from([tier.name for tier in TIERS]),
        COSTS,
        st.floats(-0.1, 20),
        COSTS,
        st.floats(0, 5),
        st.sampled_from([0.0, 0.03, 0.04, 0.06]),
    ),
    st.tuples(st.just("come_back"), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("finish"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.floats(0, 3)),
    st.tuples(st.just("wait"), st.floats(0, 0.05)),
    st.tuples(st.just("slots"), st.integers(0, 4)),
    st.tuples(st.just("room"), st.integers(0, 3)),
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=60), st.integers(1, 12))
def test_whatever_happens_the_invariants_hold(steps: list[tuple], max_queued: int) -> None:
    """600 short workloads of any events. Bounds: `lags.py` (lag, wait) and `fair.py` (service of two tenants)."""
    rules = {"a": TenantRule(1.0, 2, 5), "b": TenantRule(2.0, 1, 3), "c": TenantRule(0.5, 100, 100)}
    model = Model(rules, 2, max_queued)
    model.scheduler.room = 1
    for kind, *what in steps:
        if kind == "wait":
            model.now += what[0]
        elif kind in ("slots", "room"):
            setattr(model.scheduler, kind, what[0])
        else:
            getattr(model, kind)(*what)
        model.settle()
    model.run_out()


@settings(max_examples=200, deadline=None)
@example(2**31 + 1, 5, 0.0, 5.0, False)  # a tenant that waits, and leaves before its turn was due
@example(135, 7, 0.3, 5.0, False)  # a tier whose only job is cancelled, and that waits again at once
@given(
    st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([0.0, 0.3]), st.sampled_from([5.0, 60.0]), st.booleans()
)
def test_under_lasting_overload_the_bounds_hold(
    seed: int, slots: int, error: float, least: float, hurried: bool
) -> None:
    """200 long workloads with all queues full, where the bounds are near: limits, weights and errors as they come.

    Without errors the service of two tenants keeps within 2·c_max ÷ w; with them, 2·R·e more, see `fair.py`. Half of
    the jobs press when they come, so that the room beyond the slots is used. Of the `hurried` most come to their last
    call, one tenant's and one tier's more than the others'.
    """
    rng, patience = random.Random(seed), random.Random(seed)
    spare_s = {name: patience.uniform(1, 4) for name in (*"abc", *(tier.name for tier in TIERS))}
    rules = {name: TenantRule(rng.choice([0.5, 1.0, 3.0]), rng.choice([2, 5, 99]), 99) for name in "abc"}
    model = Model(rules, slots)
    model.scheduler.room = 1 + slots // 2
    for _ in range(150):
        tries = itertools.count()
        while len(model.waiting) < 15 and next(tries) < 8:  # the hurried are refused, and promised places
            cost = rng.uniform(least, C_MAX)
            actual = cost * rng.uniform(1 - error, 1 + error)
            first_s = rng.choice([0.0, 0.04])
            tenant, tier = rng.choice("abc"), rng.choice(TIERS).name
            short = hurried and patience.random() < 0.8
            patience_s = spare_s[tenant] * spare_s[tier] if short else 1e6
            model.arrive(tenant, tier, cost, patience_s, actual, 0.1 * short, first_s)
        model.settle()
        model.now += 0.1
        model.settle()
        for _ in range(len(model.running) if rng.random() < 0.1 else 1):
            model.finish(rng.randrange(9))
        if rng.random() < 0.05:
            model.cancel(rng.randrange(9))
    model.run_out()

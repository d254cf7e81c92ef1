"""Places for those who were refused: kept, known again, given away, and no harm to others."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tiermesh.common.errors import Overloaded
from tiermesh.router.jobs import Dispatch, Job, Refusal, TenantRule, TierRule
from tiermesh.router.promises import LONGEST_GRACE_S, MAX_DELAY_S, Promises
from tiermesh.router.scheduler import Scheduler

PATIENCE_S, TAKES_S, STEP_S = 4.0, 0.25, 0.05


def job(number: int, tenant: str = "a", identity: int | None = None) -> Job:
    return Job(number, tenant, "only", 10.0, 1e9, identity=number if identity is None else identity)


def test_a_place_is_known_again_and_given_away_when_nobody_comes() -> None:
    promises = Promises(["only"])
    assert promises.make(job(1), 10.0, 3.0, 99, 0.0) == 3.0
    assert promises.make(job(2), 10.0, 6.0, 99, 0.0) == 6.0
    again = job(3, identity=1)
    held = promises.of(again)
    assert held is not None
    assert held.due == 3.0
    assert promises.of(job(4)) is None
    assert promises.of(job(5, tenant="b", identity=1)) is None, "a place is its tenant's own"
    assert promises.ahead(job(4), None) == {"a": 20.0}
    assert promises.ahead(again, held) == {"a": 0.0}, "the later place is not ahead of the earlier one"
    promises.taken(again)
    assert promises.ahead(job(4), None) == {"a": 10.0}
    promises.passed(6.0 + LONGEST_GRACE_S)
    assert promises.ahead(job(4), None) == {}


def test_who_asks_again_too_early_is_told_the_same_time_and_gets_no_second_place() -> None:
    promises = Promises(["only"])
    promises.make(job(1), 10.0, 8.0, 99, 0.0)
    assert promises.make(job(2, identity=1), 10.0, 20.0, 99, 3.0) == pytest.approx(5.0)
    assert promises.ahead(job(9), None) == {"a": 10.0}


def test_places_are_bounded_in_number_and_time() -> None:
    promises = Promises(["only"])
    assert promises.make(job(1), 10.0, MAX_DELAY_S + 1, 99, 0.0) is None
    made = [promises.make(job(number), 10.0, 1.0, 5, 0.0) for number in range(1, 100)]
    assert sum(delay is not None for delay in made) == 5
    assert promises.make(job(200, identity=0), 10.0, 1.0, 99, 0.0) is None, "who can't be known again has no place"


def test_places_that_nobody_takes_up_count_less_and_less() -> None:
    promises = Promises(["only"])
    for number in range(1, 200):
        now = number * 10.0
        promises.passed(now)
        promises.make(job(number), 10.0, 1.0, 99, now)
    assert promises.ahead(job(999), None)["a"] < 1.0
    for number in range(200, 400):
        now = number * 10.0
        promises.passed(now)
        promises.make(job(number), 10.0, 1.0, 99, now)
        promises.taken(job(1000 + number, identity=number))
    assert promises.expected("a") == 0.0
    promises.make(job(400), 10.0, 1.0, 99, 4000.0)
    assert promises.ahead(job(999), None)["a"] > 9.0


class Clients:
    """Tenants whose requests take a quarter of a second each on one slot; some come back as told."""

    def __init__(self, rates: dict[str, float], seed: int, returns: str = "") -> None:
        self.schedule = Scheduler(
            [TierRule("only", PATIENCE_S, 0.1)], lambda _: TenantRule(1.0, 99, 64), largest_cost=100.0
        )
        self.schedule.slots = 1
        self.rates = rates
        self.rng = random.Random(seed)
        self.returns = returns
        self.now = 0.0
        self.first: dict[str, list[bool]] = {tenant: [] for tenant in rates}
        """Whether first calls were taken in, by tenant."""
        self.back: dict[str, list[bool]] = {tenant: [] for tenant in rates}
        """Whether those who came back as told were."""
        self.idle_steps = 0
        self._coming: list[tuple[float, Job]] = []
        self._ends = 0.0
        self._runs: Job | None = None
        self._numbers = 0

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.now += STEP_S
            if self._runs is not None and self._ends <= self.now:
                self.schedule.finish(self._runs.number, 10.0, self.now)
                self._runs = None
            for tenant, rate in self.rates.items():
                if self.rng.random() < rate * STEP_S:
                    self._come(job(0, tenant, identity=self._numbers + 1), self.first[tenant])
            due = [entry for entry in self._coming if entry[0] <= self.now]
            self._coming = [entry for entry in self._coming if entry[0] > self.now]
            for _, old in due:
                self._come(old, self.back[old.tenant])
            self._decide()

    def _come(self, asked: Job, verdicts: list[bool]) -> None:
        self._numbers += 1
        new = replace(asked, number=self._numbers, deadline=self.now + PATIENCE_S, service_s=TAKES_S)
        decisions = self.schedule.arrive(new, self.now)
        verdicts.append(not decisions)
        for decision in decisions:
            assert isinstance(decision, Refusal)
            assert isinstance(decision.error, Overloaded)
            if new.tenant in self.returns and (delay_s := decision.error.retry_after_s) is not None:
                self._coming.append((self.now + delay_s, new))

    def _decide(self) -> None:
        for decision in self.schedule.decide(self.now):
            if isinstance(decision, Dispatch):
                self._runs = self.schedule._running[decision.job]
                self._ends = self.now + TAKES_S - 1e-9
        self.idle_steps += self._runs is None


def share(verdicts: list[bool]) -> float:
    return sum(verdicts) / len(verdicts)


@pytest.mark.parametrize("seed", range(3))
def test_promises_are_kept_at_twice_the_capacity(seed: int) -> None:
    clients = Clients({"a": 4.0, "b": 4.0}, seed, returns="ab")
    clients.run(300.0)
    for tenant in "ab":
        assert len(clients.back[tenant]) > 200
        assert share(clients.back[tenant]) > 0.8
    assert clients.idle_steps < 30, "and the slot is busy"


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_that_takes_every_place_it_can_get_keeps_nobody_else_out(seed: int) -> None:
    """One asks for five times the capacity; the other for a third, less than its half. Does the flood come back?"""
    shares = []
    for returns in ("", "f"):
        clients = Clients({"f": 20.0, "q": 1.33}, seed, returns)
        clients.run(300.0)
        shares.append(share(clients.first["q"]))
    assert share(clients.back["f"]) > 0.8
    assert min(shares) > 0.9
    assert shares[1] > shares[0] - 0.05


def test_where_nobody_comes_back_nobody_is_kept_out_for_long() -> None:
    clients = Clients({"a": 8.0}, 0)
    clients.run(120.0)
    clients.idle_steps = 0
    clients.first["a"].clear()
    clients.run(200.0)
    assert clients.idle_steps < 20, "the slot is busy"
    assert share(clients.first["a"]) == pytest.approx(0.5, abs=0.05)

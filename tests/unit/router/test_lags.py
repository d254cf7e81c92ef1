"""The tiers' bounds, at the rule itself: any tiers wait, are empty, or have tenants at their limits for a while."""

from __future__ import annotations

import math
import random
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.router.jobs import TierRule
from tiermesh.router.lags import Lags, lag_bound, wait_bound

C_MAX = 100.0


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.floats(0.05, 0.95), st.integers(0, 2**32))
def test_no_lag_and_no_wait_exceeds_its_bound(parts: list[int], total: float, seed: int) -> None:
    """500 workloads over 1 to 5 tiers whose shares add up to `total`; both bounds are derived in `lags.py`."""
    rng = random.Random(seed)
    tiers = [TierRule(str(number), 1.0, total * part / sum(parts)) for number, part in enumerate(parts)]
    lags = Lags(tiers, C_MAX)
    passed_over = dict.fromkeys((tier.name for tier in tiers), 0.0)
    for _ in range(12):
        states = {tier.name: rng.choice(["waits", "waits", "waits", "empty", "limited"]) for tier in tiers}
        waiting = [name for name, state in states.items() if state == "waits"]
        for name, state in states.items():
            if state == "empty":
                lags.clear(name)
            if state != "waits":
                passed_over[name] = 0.0
        for _ in range(rng.choice([1, 5, 60]) if waiting else 0):
            costs = {name: rng.choice([C_MAX, rng.uniform(1, C_MAX)]) for name in waiting}
            served = lags.next(waiting, costs.__getitem__, rng.random() < 0.3)
            cost = costs[served]
            lags.served(served, cost, waiting)
            for tier in tiers:
                counts = tier.name in waiting and tier.name != served
                passed_over[tier.name] = passed_over[tier.name] + cost if counts else 0.0
                assert passed_over[tier.name] <= wait_bound(tiers, tier, C_MAX)
                assert lags.all()[tier.name] <= lag_bound(tiers, C_MAX)


def test_service_beyond_the_share_is_not_held_against_a_tier() -> None:
    tiers = [TierRule("high", 1.0, 0.2), TierRule("low", 1.0, 0.1)]
    lags = Lags(tiers, C_MAX)
    for _ in range(1000):
        lags.served("low", C_MAX, ["low"])
    passed_over = 0.0
    while (served := lags.next(["high", "low"], lambda _: C_MAX)) != "low":
        lags.served(served, C_MAX, ["high", "low"])
        passed_over += C_MAX
        assert passed_over <= wait_bound(tiers, tiers[1], C_MAX)


def test_a_tier_whose_tenants_are_at_their_limits_keeps_what_it_is_owed() -> None:
    tiers = [TierRule("high", 1.0, 0.2), TierRule("low", 1.0, 0.1)]
    lags = Lags(tiers, C_MAX)
    for _ in range(9):
        lags.served("high", C_MAX, ["high", "low"])
    lags.served("high", C_MAX, ["high"])
    assert lags.all()["low"] == pytest.approx(90.0)
    for _ in range(3):
        lags.served("high", C_MAX, ["high", "low"])
    lags.served("high", C_MAX, ["high"])
    assert lags.all()["low"] == C_MAX, "but no more than brings it to the front"


def test_a_tier_without_a_share_may_wait_forever() -> None:
    tiers = [TierRule("high", 1.0, 0.2), TierRule("low", 1.0, 0.0)]
    lags = Lags(tiers, C_MAX)
    for _ in range(1000):
        assert lags.next(["high", "low"], lambda _: C_MAX) == "high"
        lags.served("high", C_MAX, ["high", "low"])
    assert wait_bound(tiers, tiers[1], C_MAX) == float("inf")


@given(cost=st.floats(1.0, C_MAX), share=st.floats(0.01, 0.5))
def test_small_jobs_have_their_share_soon(cost: float, share: float) -> None:
    """A tier of jobs of one cost waits for as many of them as its share is a part of the whole, and one more."""
    lags = Lags([TierRule("high", 1.0, 0.2), TierRule("low", 1.0, share)], C_MAX)
    order = []
    for _ in range(500):
        order.append(lags.next(["high", "low"], lambda _: cost))
        lags.served(order[-1], cost, ["high", "low"])
    waits = [len(list(run)) for tier, run in groupby(order) if tier == "high"]
    assert max(waits) <= math.ceil(1 / share) + 1
    assert order.count("low") >= share * 500 - 2


def test_while_the_highest_tier_presses_the_others_wait_for_the_largest_cost() -> None:
    lags = Lags([TierRule("high", 1.0, 0.2), TierRule("low", 1.0, 0.1)], C_MAX)
    passed_over = 0
    while lags.next(["high", "low"], lambda _: 10.0, True) == "high":
        lags.served("high", 10.0, ["high", "low"])
        passed_over += 1
    assert passed_over == 100
    assert lags.next(["high", "low"], lambda _: 10.0) == "low"

"""The tiers' bounds, at the rule itself: any tiers wait, are empty, or have tenants at their limits for a while."""

from __future__ import annotations

import random

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
            served, cost = lags.next(waiting), rng.choice([C_MAX, rng.uniform(1, C_MAX)])
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
    while (served := lags.next(["high", "low"])) != "low":
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
        assert lags.next(["high", "low"]) == "high"
        lags.served("high", C_MAX, ["high", "low"])
    assert wait_bound(tiers, tiers[1], C_MAX) == float("inf")

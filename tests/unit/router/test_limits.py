"""Requests and tokens per minute."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.config import TenantConfig, default_mesh
from tiermesh.common.errors import QuotaExceeded
from tiermesh.router.limits import Limits


@dataclass
class HandClock:
    time: float = 0.0

    def now(self) -> float:
        return self.time


def tenant(requests: int, tokens: int) -> TenantConfig:
    (demo,) = default_mesh({}).tenants
    return replace(demo, limits=replace(demo.limits, requests_per_minute=requests, tokens_per_minute=tokens))


def test_a_minute_gives_a_minutes_worth() -> None:
    clock = HandClock()
    limits, who = Limits(clock), tenant(2, 1000)
    limits.reserve(who, 1)
    limits.reserve(who, 1)
    with pytest.raises(QuotaExceeded) as caught:
        limits.reserve(who, 1)
    assert caught.value.retry_after_s == pytest.approx(30.0)
    clock.time = 30.0
    limits.reserve(who, 1)


def test_what_was_not_used_is_given_back_and_more_is_owed() -> None:
    clock = HandClock()
    limits, who = Limits(clock), tenant(1000, 100)
    reservation = limits.reserve(who, 80)
    limits.settle(reservation, 10)
    limits.settle(limits.reserve(who, 90), 150)
    with pytest.raises(QuotaExceeded, match="tokens_per_minute"):
        limits.check(who)
    clock.time = 60.0
    limits.check(who)


def test_a_request_larger_than_the_limit_waits_for_a_full_bucket() -> None:
    clock = HandClock()
    limits, who = Limits(clock), tenant(1000, 100)
    limits.settle(limits.reserve(who, 5000), 100)
    with pytest.raises(QuotaExceeded):
        limits.reserve(who, 5000)
    clock.time = 60.0
    limits.reserve(who, 5000)


def test_other_limits_count_from_a_reload_on() -> None:
    limits = Limits(HandClock())
    limits.reserve(tenant(1, 100), 1)
    limits.reserve(tenant(5, 100), 1)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 60), st.floats(0, 60)), max_size=40))
def test_over_any_time_at_most_rate_plus_a_burst_is_used(steps: list[tuple[float, float, float]]) -> None:
    clock = HandClock()
    limits, who = Limits(clock), tenant(10**6, 60)
    used = 0.0
    for wait_s, wanted, actual in steps:
        clock.time += wait_s
        try:
            reservation = limits.reserve(who, wanted)
        except QuotaExceeded:
            continue
        limits.settle(reservation, min(actual, wanted))
        used += min(actual, wanted)
        assert used <= 60 + clock.time + 1e-6

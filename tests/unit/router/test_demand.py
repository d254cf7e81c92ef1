"""What the tiers above ask for, now and usually."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.router.demand import Demand

TIERS = ["high", "middle", "low"]
COUNTS = st.fixed_dictionaries({tier: st.integers(0, 50) for tier in TIERS})


@given(spans=st.lists(st.tuples(st.floats(0.0, 30.0), COUNTS), min_size=1, max_size=20), slots=st.integers(1, 64))
def test_it_is_at_least_what_is_asked_now_and_at_most_what_ever_was(
    spans: list[tuple[float, dict[str, int]]], slots: int
) -> None:
    demand, now = Demand(TIERS), 0.0
    for seconds, jobs in spans:
        now += seconds
        demand.passed(now, jobs, slots)
    assert demand.above("high") == 0.0
    for tier, above in (("middle", ["high"]), ("low", ["high", "middle"])):
        asked = [sum(jobs[name] for name in above) / slots for _, jobs in spans]
        most = sum(max(jobs[name] for _, jobs in spans) for name in above) / slots
        assert asked[-1] - 1e-9 <= demand.above(tier) <= most + 1e-9


def test_a_burst_is_remembered_for_some_seconds() -> None:
    demand = Demand(TIERS)
    demand.passed(20.0, {"high": 8, "middle": 0, "low": 0}, 8)
    demand.passed(20.1, {"high": 0, "middle": 0, "low": 0}, 8)
    assert demand.above("low") == pytest.approx(1.0, rel=0.1)
    demand.passed(60.0, {"high": 0, "middle": 0, "low": 0}, 8)
    assert demand.above("low") < 0.01

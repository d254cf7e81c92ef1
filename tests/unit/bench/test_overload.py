"""What the figures of an overloaded run count, and what they count as a miss."""

from __future__ import annotations

import pytest

from tiermesh.bench.overload import _of, _of_ladders
from tiermesh.bench.overload_load import Asked, Outcome


def test_a_refusal_and_a_late_first_token_are_misses_of_the_offered() -> None:
    outcomes = [
        Outcome("voice", "realtime", 0.0, admitted=True, ttft_s=0.02, tokens=5, ended="stop"),
        Outcome("voice", "realtime", 0.1, admitted=True, ttft_s=0.7, tokens=7, ended="length"),
        Outcome("voice", "realtime", 0.2, ended="OVERLOADED", retry_after_s=1.0),
        Outcome("voice", "realtime", 0.3, admitted=True, ended="UNAVAILABLE"),
    ]
    again = [
        Outcome("voice", "realtime", 0.2, admitted=True, ttft_s=0.1, tokens=3, ended="stop"),
        Outcome("voice", "realtime", 0.4, ended="OVERLOADED"),
        Outcome("flood", "standard", 0.5, admitted=True, ttft_s=0.1, tokens=3, ended="DEADLINE_EXCEEDED"),
        Outcome("voice", "realtime", 0.6, admitted=True, ttft_s=0.1, tokens=3, ended="stop"),
    ]
    figures = _of(Asked(outcomes, again))
    voice = figures["tenants"]["voice"]
    assert (voice["offered"], voice["refused"], voice["finished"], voice["tokens"]) == (4, 1, 2, 12)
    assert voice["ttft_attained"] == 0.25
    assert figures["admitted"] == {"stop": 3, "length": 1, "UNAVAILABLE": 1, "DEADLINE_EXCEEDED": 1}
    assert figures["lost"] == {"before_first_token": {"realtime": 1}, "after_it": {"standard": 1}}
    assert figures["retries"] == {"count": 4, "admitted": 0.75}


def test_delays_are_compared_where_one_worked() -> None:
    told = _of_ladders([(2.0, 1.0), (4.0, 1.0), (3.0, None), (7.0, 2.0)])
    assert (told["count"], told["worked"]) == (4, 3)
    assert told["told_of_shortest"] == pytest.approx(4.0), "of the medians"
    assert told["median_of_ratios"] == pytest.approx(3.5)
    assert _of_ladders([(3.0, None)]) == {"count": 1, "worked": 0}

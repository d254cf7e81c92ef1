"""Leases of announced workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.common.errors import InvalidRequest, Overloaded
from tiermesh.router.announced import LEASE_S, MOST, Announced

WORDS = st.lists(st.tuples(st.sampled_from(["heard", "left", "passed"]), st.integers(0, 4), st.floats(0, LEASE_S / 4)))


@given(WORDS)
def test_a_worker_is_kept_from_a_word_of_it_until_it_leaves_or_its_lease_ends(
    words: list[tuple[str, int, float]],
) -> None:
    announced, until, now = Announced(), dict[str, float](), 0.0
    for word, number, passed_s in words:
        address, now = f"worker-{number}:7090", now + passed_s
        over = {known for known, end in until.items() if end <= now}
        assert set(announced.expired(now)) == over
        until = {known: end for known, end in until.items() if known not in over}
        if word == "heard":
            assert announced.heard(address, now) == (address not in until)
            until[address] = now + LEASE_S
        elif word == "left":
            assert announced.left(address) == (until.pop(address, None) is not None)
        assert set(announced.addresses) == set(until)


def test_a_router_that_was_paused_waits_for_what_was_said_meanwhile() -> None:
    announced = Announced()
    announced.heard("host:1", 0.0)
    assert announced.expired(1.0) == ()
    assert announced.expired(100.0) == ()
    assert announced.expired(102.0) == ()
    later = [announced.expired(102.0 + second) for second in range(1, 10)]
    assert sum(map(len, later)) == 1


def test_there_is_a_most() -> None:
    announced = Announced()
    for number in range(MOST):
        announced.heard(f"host:{number + 1}", 0.0)
    with pytest.raises(Overloaded):
        announced.heard("one-more:1", 0.0)
    assert not announced.heard("host:1", 1.0)


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", "host:0", "host:70000", "a\nb:80", "a b:80", "ü:80", "x" * 300 + ":80", "http://h:80"],
)
def test_what_is_no_address_is_refused_in_its_callers_terms(address: str) -> None:
    with pytest.raises(InvalidRequest, match=r"host:port"):
        Announced().heard(address, 0.0)


@pytest.mark.parametrize("address", ["host:80", "10.0.0.1:7090", "[fe80::1]:7090", "worker-1.pool.local:65535"])
def test_names_and_numbers_are_addresses(address: str) -> None:
    assert Announced().heard(address, 0.0)

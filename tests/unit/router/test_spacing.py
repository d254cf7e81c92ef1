"""The gap between a stream's messages follows how busy the thread is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiermesh.router.spacing import MOST_S, Spacing


@given(st.lists(st.floats(0, 1)))
def test_the_gap_is_bounded_whatever_the_load_was(shares: list[float]) -> None:
    spacing = Spacing()
    for share in shares:
        spacing.worked(share)
        assert 0 <= spacing.gap_s <= MOST_S


def test_a_busy_thread_has_the_widest_gap_soon_and_a_free_one_none() -> None:
    spacing = Spacing()
    for _ in range(10):
        spacing.worked(0.9)
    assert spacing.gap_s == MOST_S
    spacing.worked(0.55)
    assert spacing.gap_s == MOST_S
    for _ in range(10):
        spacing.worked(0.1)
    assert spacing.gap_s == 0

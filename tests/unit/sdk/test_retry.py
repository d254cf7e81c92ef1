from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiermesh import DeadlineExceeded, NoWorkers, Overloaded, Retry, Unavailable

share = st.floats(0, 1, exclude_max=True)


@given(failed=st.integers(1, 20), draw=share, left=st.none() | st.floats(0, 100), after=st.none() | st.floats(0, 50))
def test_a_wait_is_bounded_and_ends_before_the_deadline(
    failed: int, draw: float, left: float | None, after: float | None
) -> None:
    retry = Retry(attempts=5, base_s=0.1, cap_s=2)
    wait = retry.wait_s(Unavailable("gone", retry_after_s=after), failed, left, draw)
    if failed >= 5:
        assert wait is None
    if wait is not None:
        assert wait >= (after or 0)
        assert wait <= max(2, after or 0)
        assert left is None or wait < left


def test_waits_double_up_to_the_cap() -> None:
    retry = Retry(attempts=9, base_s=0.1, cap_s=0.5)
    assert [retry.wait_s(NoWorkers("none"), n, None, 1.0) for n in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.5]


def test_only_unavailable_is_tried_again() -> None:
    for error in (Overloaded("full", retry_after_s=0.1), DeadlineExceeded("late")):
        assert Retry().wait_s(error, 1, None, 0.5) is None

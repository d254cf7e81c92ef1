"""Who has no time to lose: a sequence that ends by its deadline if it goes on, and hardly if it is held up. Pure.

While it is in haste it is not paused for a higher tier's prompt, and of its tier it gives way the later the less time
it has. It never keeps a higher tier out; a short deadline gains a place over equals alone, for as long as it lasts.
"""

from __future__ import annotations

from .request import Sequence

ENOUGH = 3.2
"""In haste is who has less than so many times the time that it needs. A step is counted as if nobody read in it; beside
readers it is up to 1.6 times as long (`pace.py`), so that with 2.0 nothing was to spare: on the mesh most of those that
were taken in and lost had their answer all but for its last tokens."""
_LATE = 0.8
"""Who can't be in time any more would only hold up others. A time per step is known to about a fifth."""


def time_left(sequence: Sequence, now: float, step_s: float | None) -> float:
    """How many times the time that it needs is left to a sequence, where a step takes `step_s`: from 0.8 to 3.2, which
    is enough. Enough is also what those have for whom there is nothing to win: without a deadline, or too late.
    """
    needs_s = (sequence.max_tokens - sequence.answer_length) * (step_s or 0.0)
    if sequence.deadline is None or needs_s <= 0.0:
        return ENOUGH
    times = (sequence.deadline - now) / needs_s
    return times if _LATE < times < ENOUGH else ENOUGH

"""Who has no time to lose: a sequence that ends by its deadline if it goes on, and hardly if it is held up. Pure.

It is not paused for a higher tier's prompt, and of its tier it is the last to give way. It never keeps a higher tier
out; a short deadline gains a place over equals alone, for as long as it lasts.
"""

from __future__ import annotations

from .request import Sequence

_SPARE, _LATE = 2.0, 0.8
"""In haste while it has less than so many times what it needs, and not much less than that: who can't be in time any
more would only hold up others. A time per step is known to about a fifth."""


def in_haste(sequence: Sequence, now: float, step_s: float | None) -> bool:
    """By the answer's tokens that may still come, where a step takes `step_s`; nobody is where that is not known."""
    if sequence.deadline is None or step_s is None:
        return False
    needs_s = (sequence.max_tokens - sequence.answer_length) * step_s
    return _LATE * needs_s < sequence.deadline - now < _SPARE * needs_s

"""What the two segments of a cut model take on this machine, measured at start."""

from __future__ import annotations

import time

from .exits import Costs
from .split import MAX_DRAFTS, SplitState

_ROUNDS = 7
"""Of one and of all rows each: 15 ms on the starter, a second at a hundred times its size."""


def measure_costs(state: SplitState) -> Costs:
    """The fastest of a few cycles at the start of a sequence: whatever else the machine does only adds to a time.

    Medians of 7 on two cores with a load of 13 made a model of 42 M parameters seem to lose at any acceptance.
    """
    one = [_cycle(state, 1) for _ in range(_ROUNDS)]
    all_rows = [_cycle(state, MAX_DRAFTS + 1) for _ in range(_ROUNDS)]
    shallow_s = min(shallow for shallow, _ in one + all_rows)
    deep_s = min(deep for _, deep in one)
    row_s = (min(deep for _, deep in all_rows) - deep_s) / MAX_DRAFTS
    return Costs(shallow_s, deep_s, max(row_s, 0.0))


def _cycle(state: SplitState, rows: int) -> tuple[float, float]:
    """Seconds of the shallow segment per row, and of the deep one for all of them."""
    state.catch_up([0])
    begun = time.perf_counter()
    for _ in range(rows):
        state.peek((0,))
    peeked = time.perf_counter()
    state.deepen()
    return (peeked - begun) / rows, time.perf_counter() - peeked

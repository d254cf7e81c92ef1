"""Who gives way, when there are more sequences than slots or KV blocks.

A sequence that waits takes the place of lower tiers, never of its own or a higher one. One that runs and can't grow
takes the blocks of whoever ranks behind it. The victim is of the lowest tier; among those one with time enough, else
the one with the most time left (`haste.py`); then the one with the least to compute again; then the one that frees the
most.

Nobody gives way more than twice: after that a sequence runs only where all that it may ever need is free, and keeps it.
But where KV is not short, it gives up its slot once more for each `EARNED` tokens that its answer has come to: that
costs it little but time, and long answers would else hold the slots through a burst of a higher tier
(`docs/decisions/031-long-answers-give-way.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many

from .blocks import BlockPool
from .request import Sequence

MOST = 2
"""Preemptions of one sequence at most, where KV is short or its answer is short still."""
EARNED = 64
"""Answer tokens that make up for one more. In simulated bursts at twice the capacity, 10 seeds, 99.6 % of the realtime
requests attained their tier with 64, 99.6 with 32, 99.7 with 16 or no bound at all, 99.0 with none earned."""


def settled(sequence: Sequence) -> bool:
    """Whether it has given way as often as it may where KV is short."""
    return sequence.preemptions >= MOST


def most_preemptions(answer: int, *, kv_is_short: bool = False) -> int:
    """How often a sequence with so long an answer gives way at most."""
    return MOST if kv_is_short else MOST + answer // EARNED


def who_makes_room(
    waiting: Sequence,
    needed: int,
    running: Many[Sequence],
    pool: BlockPool,
    slots: int,
    time_left: Callable[[Sequence], float],
) -> list[Sequence] | None:
    """Whose leaving gives `waiting` a slot and `needed` blocks: nobody's, where it has both; None where nobody's does.

    For each that runs one block more has to be free, or whoever was let in would be the next victim.
    """
    left, free, leaving = len(running), pool.free, list[Sequence]()
    kv_is_short = needed + left > free
    lower = _by_cost((s for s in running if s.tier > waiting.tier and _gives_way(s, kv_is_short)), pool, time_left)
    while left >= slots or needed + left > free:
        if not lower:
            return None
        victim = lower.pop()
        leaving.append(victim)
        left -= 1
        free += pool.freed_by(victim.blocks)
    return leaving


def who_yields(
    growing: Sequence, running: Many[Sequence], pool: BlockPool, time_left: Callable[[Sequence], float]
) -> Sequence:
    """Whose blocks `growing` takes when none is free; its own tells that it must go itself."""
    behind = _by_cost((s for s in running if s.rank > growing.rank and not settled(s)), pool, time_left)
    return behind[-1] if behind else growing


def _gives_way(sequence: Sequence, kv_is_short: bool) -> bool:
    return sequence.preemptions < most_preemptions(sequence.answer_length, kv_is_short=kv_is_short)


def _by_cost(sequences: Iterable[Sequence], pool: BlockPool, time_left: Callable[[Sequence], float]) -> list[Sequence]:
    """The best victim last."""
    return sorted(sequences, key=lambda s: (s.tier, time_left(s), -s.computed, pool.freed_by(s.blocks)))

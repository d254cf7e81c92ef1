"""Our own drafts join a step: after all that was planned, in what its budget has left."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import replace

from .blocks import BlockPool
from .drafts import DraftCounts, Drafter
from .request import Job
from .scheduler import Work


def add_drafts(plan: Ids[Work], budget: int, pool: BlockPool, counts: DraftCounts) -> list[Work]:
    """The plan, with drafts for sequences that generate, `budget` ids at most in all.

    Nobody gives up a block for a draft. A step that reads a prompt is long already and takes none.
    """
    works = list(plan)
    if any(work.count > work.wanted for work in works):
        return works
    generating = [i for i, work in enumerate(works) if work.sequence.job is Job.GENERATE]
    for place, i in enumerate(generating):
        sequence = works[i].sequence
        if sequence.drafter is None:
            sequence.drafter = Drafter(counts)
        share = -(-budget // (len(generating) - place))
        # The model's own id follows the draft.
        draft = sequence.drafter.propose(sequence.tokens, min(share, sequence.max_tokens - sequence.answer_length - 1))
        if draft and pool.grow(sequence.blocks, sequence.total + len(draft)):
            sequence.draft = draft
            works[i] = replace(works[i], count=works[i].count + len(draft))
            budget -= len(draft)
    return works

"""How each wanted position of a step's work is to be chosen behind."""

from __future__ import annotations

from .request import Job, Sequence
from .sampler import Row
from .scheduler import Work
from .tally import Seen, Tally


def rows_of(work: Work) -> list[Row]:
    """One row for each of the last `work.wanted` positions, in order."""
    sequence = work.sequence
    end = sequence.computed + work.count
    positions = range(end - work.wanted, end)
    return [
        Row(
            sequence.sampling,
            max(0, position + 1 - sequence.prompt_length),
            _seen(sequence, positions.start + 1, position + 1) if sequence.sampling.penalized else None,
            _given(sequence, position + 1),
            sequence.logprobs,
            sequence.top_logprobs,
        )
        for position in positions
    ]


def _seen(sequence: Sequence, first: int, follows: int) -> Seen:
    """What precedes position `follows`: tokens up to `first`, behind them drafts, or the rest of a scored chunk."""
    if sequence.tally is None:
        sequence.tally = Tally(sequence.prompt_length)
    return sequence.tally.before(sequence.tokens, first, sequence.slice(first, follows))


def _given(sequence: Sequence, follows: int) -> int | None:
    """SCORE: the id that stands at position `follows`."""
    scored = sequence.job is Job.SCORE and follows < len(sequence.tokens)
    return sequence.tokens[follows] if scored else None

"""Drafts by looking back: what followed when the same ids stood here before (prompt lookup; Saxena 2023). Pure.

Answers that repeat their prompt, such as edited code, and texts that repeat themselves are drafted at the price of a
dictionary. A match is followed for as long as it holds: the longer it gets, the less else could go on like this. Where
none holds, the last three ids are looked up. On 60 edits of library files that took 0.147 passes a token, no more than
looking up three, two and one ids in turn, which drafted twice as much in vain where there was nothing to copy. Without
following, three, two and one took 0.22.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass

LONGEST = 16
"""Ids of one draft at most."""

_GRAM = 3


@dataclass(slots=True)
class DraftCounts:
    """What became of all drafts."""

    drafted: int = 0
    accepted: int = 0


class DraftLength:
    """How far to draft: an integral controller that holds the share of accepted ids at `TARGET`.

    Below one id it drafts nothing for a while, then tries two; the while doubles each time that this was in vain.
    """

    TARGET = 0.6
    _GAIN = 0.5
    _START, _TRIAL = 4.0, 2.0
    _FIRST_REST, _LONGEST_REST = 16, 256
    """In tokens."""

    def __init__(self) -> None:
        self._length = self._START
        self._rest = self._FIRST_REST
        self._rested = 0

    @property
    def ids(self) -> int:
        """0 to `LONGEST`."""
        return int(self._length)

    def saw(self, drafted: int, accepted: int, taken: int) -> None:
        """A step drafted and accepted so many ids, and took `taken` in all."""
        if drafted:
            length = self._length + self._GAIN * (accepted - self.TARGET * drafted)
            self._length = min(float(LONGEST), max(0.0, length))
            self._rested = 0
            if accepted == drafted > 1:
                self._rest = self._FIRST_REST
        elif self._length < 1:
            self._rested += taken
            if self._rested >= self._rest:
                self._length = self._TRIAL
                self._rest = min(self._LONGEST_REST, 2 * self._rest)


class Drafter:
    """Drafts for one sequence, whose tokens only ever grow. Each token is indexed once, and not before it is needed."""

    def __init__(self, counts: DraftCounts) -> None:
        """`counts` are shared by all drafters."""
        self.length = DraftLength()
        self._counts = counts
        self._after: dict[tuple[int, ...], int] = {}
        """Where the latest occurrence of three ids went on."""
        self._known = 0
        self._source: int | None = None
        """The position whose id would be next if the present match went on."""

    def propose(self, tokens: Ids[int], room: int) -> list[int]:
        """At most `room` ids that may follow `tokens`; none while drafts don't pay."""
        most = min(self.length.ids, room)
        if most < 1:
            return []
        self._catch_up(tokens)
        if self._source is None:
            return []
        draft: list[int] = []
        for position in range(self._source, self._source + most):
            # A text that repeats itself is copied beyond its end.
            draft.append(tokens[position] if position < len(tokens) else draft[position - len(tokens)])
        return draft

    def saw(self, drafted: int, accepted: int, taken: int) -> None:
        """What a step made of a draft; 0 of 0 where there was none. `taken` ids became part of the answer."""
        self.length.saw(drafted, accepted, taken)
        self._counts.drafted += drafted
        self._counts.accepted += accepted

    def _catch_up(self, tokens: Ids[int]) -> None:
        source, after = self._source, self._after
        for position in range(self._known, len(tokens)):
            if source is not None:
                source = source + 1 if tokens[source] == tokens[position] else None
            if position >= _GRAM:
                after[tuple(tokens[position - _GRAM : position])] = position
        if source is None:
            source = after.get(tuple(tokens[-_GRAM:]))
        self._known, self._source = len(tokens), source

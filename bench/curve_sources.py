"""Where drafts and choices come from, besides the models themselves: memories of both, n-gram matches, nobody. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..edge.units import Unit
from .curve_loop import Drafter, Ids, Limits

NGRAM_MOST = 3
NGRAM_DRAFT = 10
"""Ids; like the longest n-gram, the default of prompt-lookup decoding (Saxena 2023)."""

Read = Callable[[Ids], tuple[Sequence[int], Sequence[float]]]
"""Of an answer: the choice after each beginning of it, from none to all, and for each of its ids how probable that was,
as a share of the best id's probability."""


class Choices:
    """What a cloud says on one prompt: one forward pass tells of all places of a text, and no place is asked twice.

    What was told first holds, so that all policies meet the same cloud where rounding could make a tie fall either way.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._chosen: dict[Ids, int] = {}
        self._shares: dict[Ids, float] = {}

    def after(self, answer: Ids, draft: Ids) -> Ids:
        """See `curve_loop.Cloud`."""
        whole = answer + draft
        beginnings = [whole[:end] for end in range(len(answer), len(whole) + 1)]
        if any(beginning not in self._chosen for beginning in beginnings):
            self._learn(whole)
        return tuple(self._chosen[beginning] for beginning in beginnings)

    def shares(self, answer: Ids) -> list[float]:
        """Per id of an answer: its probability as a share of the best id's at its place; 1 where it is the choice."""
        told = self.after((), answer)
        ends = [end for end, token in enumerate(answer, start=1) if token != told[end - 1]]
        if any(answer[:end] not in self._shares for end in ends):
            self._learn(answer)
        shares = [1.0] * len(answer)
        for end in ends:
            shares[end - 1] = self._shares[answer[:end]]
        return shares

    def _learn(self, whole: Ids) -> None:
        chosen, shares = self._read(whole)
        for end, token in enumerate(chosen):
            self._chosen.setdefault(whole[:end], token)
        for end, share in enumerate(shares, start=1):
            self._shares.setdefault(whole[:end], share)


class Remembered:
    """A drafter that is asked once for each place; all policies see the same drafts there."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._units: dict[Ids, Unit] = {}

    def unit(self, answer: Ids) -> Unit:
        """See `Drafter`."""
        if answer not in self._units:
            self._units[answer] = self._drafter.unit(answer)
        return self._units[answer]


class Nobody:
    """Drafts nothing: the cloud alone, one pass per token."""

    def unit(self, answer: Ids) -> Unit:
        """An empty one."""
        return _plain(())


class Ngrams:
    """The cloud's own drafts: what followed the last ids where they occurred before, in prompt or answer.

    Prompt-lookup decoding (Saxena 2023): the longest n-gram that occurs decides, of several places the latest.
    """

    def __init__(self, prompt: Sequence[int], limits: Limits) -> None:
        self._prompt = tuple(prompt)
        self._limits = limits

    def unit(self, answer: Ids) -> Unit:
        """See `Drafter`; empty where nothing matches."""
        room = min(NGRAM_DRAFT, self._limits.tokens - len(answer))
        found = lookup(self._prompt + answer, room)
        end = next((i for i, token in enumerate(found, start=1) if token in self._limits.end_ids), len(found))
        return _plain(found[:end])


def lookup(known: Ids, most: int) -> Ids:
    """At most `most` ids that followed the latest earlier place of the longest known ending of at most three ids."""
    for size in range(min(NGRAM_MOST, len(known) - 1), 0, -1):
        ending = known[-size:]
        for start in range(len(known) - size - 1, -1, -1):
            if known[start : start + size] == ending:
                return known[start + size : start + size + most]
    return ()


def _plain(ids: Ids) -> Unit:
    return Unit(ids, (), (), (), ends=False)

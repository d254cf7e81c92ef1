"""Which ids a sequence holds and how often its answer does: all that penalties need, kept so that a step costs only
what is new in it."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Seen:
    """The ids before one place."""

    ids: npt.NDArray[np.int64]
    """[U], each once."""
    times: npt.NDArray[np.float32]
    """[U]: how often the answer holds each; 0 for one that only the prompt holds."""


class Tally:
    """Grows with one sequence. Tokens of a sequence are only ever appended, so a count is never wrong, only behind."""

    def __init__(self, prompt_length: int) -> None:
        self._prompt_length = prompt_length
        self._length = 0
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._times = np.empty(64, np.float32)

    def before(self, tokens: Ids[int], length: int, drafts: Ids[int] = ()) -> Seen:
        """What `tokens[:length]` and then `drafts`, all of them the answer's, hold."""
        if length < self._length:
            self._places.clear()
            self._length = 0
        for position in range(self._length, length):
            self._count(tokens[position], position >= self._prompt_length)
        self._length = length
        known = len(self._places)
        if not drafts:
            return Seen(self._ids[:known].copy(), self._times[:known].copy())
        more, times = np.unique(np.asarray(drafts, np.int64), return_counts=True)
        places = np.array([self._places.get(int(token), -1) for token in more])
        seen = np.concatenate([self._times[:known], times[places < 0].astype(np.float32)])
        seen[places[places >= 0]] += times[places >= 0]
        return Seen(np.concatenate([self._ids[:known], more[places < 0]]), seen)

    def _count(self, token: int, of_answer: bool) -> None:
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._times = np.concatenate([self._times, np.empty_like(self._times)])
            self._ids[place], self._times[place] = token, 0.0
        self._times[place] += of_answer

"""One sequence on the edge model: the ids that its KV cache holds, and what the model says after them.

A step costs the graph and little else: inputs, outputs and KV of a sequence are bound once to memory that is written
in place, so that a token needs no allocation and no copy. Rolling back moves no memory: the length goes down, and what
lies behind it is overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .artifact import Architecture
from .segment import Segment

_CACHED_LENGTHS = 4
"""Inputs up to this length keep their binding: 1 for decoding, 2 after a verdict (last draft and correction)."""


@dataclass(slots=True)
class _Bound:
    """A binding for inputs of one length."""

    binding: Any
    ids: npt.NDArray[np.int64]
    """[1, S], written in place before each run."""


class SequenceState:
    """The ids that one KV cache holds, and the outputs after the last of them. For one thread at a time."""

    def __init__(self, session: ort.InferenceSession, shapes: Architecture) -> None:
        self._set_up(shapes)
        self._graph = Segment(session, range(shapes.layers), shapes)
        self._bound: dict[int, _Bound] = {}

    def _set_up(self, shapes: Architecture) -> None:
        self.max_length = shapes.max_length
        self.ids: list[int] = []
        """What the KV cache holds."""
        self.logits = np.zeros((1, 1, shapes.vocab), np.float32)
        self.token = np.zeros(1, np.int64)
        self.features = np.zeros((1, 3), np.float32)
        """Max probability, top-2 margin, entropy in nats; of the unscaled softmax."""

    def reset(self) -> None:
        """Forgets the sequence."""
        self.ids.clear()

    def catch_up(self, known: Sequence[int]) -> None:
        """Makes the KV cache hold exactly `known` and the outputs those after its last id; runs only what is new.

        What the cache holds beyond the common prefix is rolled back. Raises ValueError when `known` is empty or longer
        than `max_length`.
        """
        self._run(self.roll_back(known))

    def roll_back(self, known: Sequence[int]) -> Sequence[int]:
        """Drops what the cache holds beyond its common prefix with `known`; what is left to run, one id or more.

        Raises ValueError when `known` is empty or longer than `max_length`.
        """
        if not 0 < len(known) <= self.max_length:
            raise ValueError(f"a sequence has 1 to {self.max_length} ids, not {len(known)}")
        # The outputs belong to the last id, so that one runs again even when the cache holds it.
        keep = min(_common(self.ids, known), len(known) - 1)
        del self.ids[keep:]
        return known[keep:]

    def step(self, token_id: int) -> None:
        """Appends one id and runs it."""
        self._require_room(1)
        self._run((token_id,))

    def _require_room(self, new: int) -> None:
        if len(self.ids) + new > self.max_length:
            raise ValueError(f"the sequence is full: {self.max_length} ids")

    def _run(self, new: Sequence[int]) -> None:
        bound = self._bound.get(len(new)) or self._bind(len(new))
        bound.ids[0] = new
        self._graph.run(bound.binding, len(self.ids) + len(new))
        self.ids.extend(new)

    def _bind(self, length: int) -> _Bound:
        ids = np.zeros((1, length), np.int64)
        outputs: dict[str, npt.NDArray[Any]] = {"logits": self.logits, "token": self.token, "features": self.features}
        bound = _Bound(self._graph.bind({"input_ids": ids}, outputs), ids)
        if length <= _CACHED_LENGTHS:
            self._bound[length] = bound
        return bound


def _common(held: list[int], known: Sequence[int]) -> int:
    """Length of the common prefix."""
    shared = min(len(held), len(known))
    if held[:shared] == list(known[:shared]):
        return shared
    return next(i for i in range(shared) if held[i] != known[i])

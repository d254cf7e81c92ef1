"""A sequence on a model cut at an inner exit: the shallow segment drafts, the deep one verifies several at once.

    peek(id) ─▶ draft ─▶ peek(draft) ─▶ draft …      shallow segment, a row of hidden states each
                    deepen()                         deep segment, all queued rows in one run
                 advance() per row                   outputs of the full depth after each queued id

Only what `advance` has passed counts as held: a draft that was wrong needs no more than to be passed by no one.
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
from .sequence import SequenceState

MAX_DRAFTS = 7
"""Per verification. At an acceptance of 0.95 the eighth would stand in 0.66 of cases."""
MAX_NEW = 2
"""Known ids that one `peek` takes: after a verdict the last draft and the correction."""
_ROWS = MAX_NEW + MAX_DRAFTS


@dataclass(frozen=True, slots=True)
class Guess:
    """What the inner exit says comes next."""

    id: int
    """−1 for one that is not on the inner exit's shortlist: no draft."""
    probability: float
    """Under the inner exit's own distribution."""


@dataclass(frozen=True, slots=True)
class _Peek:
    """A binding of the shallow segment that writes its hidden states to fixed rows of the queue."""

    binding: Any
    ids: npt.NDArray[np.int64]
    """[1, S], written in place before each run."""


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Of the full depth after one row, in the shapes of `SequenceState`; views that stay valid."""

    logits: npt.NDArray[np.float32]
    token: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


class SplitState(SequenceState):
    """`catch_up` and `step` run both segments at once; `peek`, `deepen`, `advance` decode in drafts."""

    def __init__(
        self, shallow: ort.InferenceSession, deep: ort.InferenceSession, shapes: Architecture, cut: int
    ) -> None:
        self._set_up(shapes)
        self._shallow = Segment(shallow, range(cut), shapes)
        self._deep = Segment(deep, range(cut, shapes.layers), shapes)
        self._hidden = np.zeros((1, _ROWS, shapes.hidden), np.float32)
        self._draft = np.zeros((1, 1, 1), np.int64)
        self._draft_probability = np.zeros((1, 1, 1), np.float32)
        self._logits = np.zeros((1, _ROWS, shapes.vocab), np.float32)
        self._token = np.zeros(_ROWS, np.int64)
        self._features = np.zeros((_ROWS, 3), np.float32)
        self._rows = [
            _Outputs(self._logits[:, i : i + 1], self._token[i : i + 1], self._features[i : i + 1])
            for i in range(_ROWS)
        ]
        self._peeks: dict[tuple[int, int], _Peek] = {}
        self._verifications: dict[tuple[int, int], Any] = {}
        self._queue: list[int] = []
        self._first = [np.array([row], np.int64) for row in range(MAX_NEW)]
        self._known = 0
        """How many of the queue were given as known: rows before the last of them need no outputs."""
        self._ready: list[int] = []
        """Queued ids that the deep segment has seen and `advance` has not passed, the next one last."""
        self._passed = 0
        """Rows that `advance` has passed."""

    def reset(self) -> None:
        """Forgets the sequence."""
        super().reset()
        self._drop()

    def roll_back(self, known: Sequence[int]) -> Sequence[int]:
        """As for any sequence; drops the queue too."""
        self._drop()
        return super().roll_back(known)

    def peek(self, new: Sequence[int]) -> Guess:
        """Queues ids (at first up to `MAX_NEW` known ones, then a draft each time) and guesses the next.

        Raises ValueError when the sequence is full.
        """
        queued = len(self._queue)
        self._require_room(queued + len(new))
        if not queued:
            self._known = len(new)
        key = queued, len(new)
        peek = self._peeks.get(key) or self._bind_peek(*key)
        peek.ids[0] = new
        self._queue.extend(new)
        self._shallow.run(peek.binding, len(self.ids) + len(self._queue))
        return Guess(self._draft.item(), self._draft_probability.item())

    def deepen(self) -> None:
        """Runs what is queued through the deep segment. What `advance` had not passed before is forgotten."""
        first, rows = self._known - 1, len(self._queue)
        key = first, rows
        binding = self._verifications.get(key) or self._bind_verification(first, rows)
        self._deep.run(binding, len(self.ids) + rows)
        self.ids.extend(self._queue[:first])
        self._ready = self._queue[first:][::-1]
        self._passed = 0
        self._queue = []

    def advance(self) -> None:
        """Holds one more of the queued ids, the first time the known ones; the outputs are those after it."""
        self.ids.append(self._ready.pop())
        row = self._rows[self._passed]
        self.logits, self.token, self.features = row.logits, row.token, row.features
        self._passed += 1

    def _drop(self) -> None:
        self._queue, self._ready = [], []

    def _run(self, new: Sequence[int]) -> None:
        self._drop()
        if len(new) <= MAX_NEW:
            self.peek(new)
            self.deepen()
            self.advance()
            return
        ids, hidden = np.array([new], np.int64), np.zeros((1, len(new), self._hidden.shape[2]), np.float32)
        total = len(self.ids) + len(new)
        self._shallow.run(self._shallow.bind({"input_ids": ids}, self._shallow_outputs(hidden)), total)
        self._deep.run(self._bind_deep(hidden, np.array([len(new) - 1], np.int64), 1), total)
        self.ids.extend(new)
        row = self._rows[0]
        self.logits, self.token, self.features = row.logits, row.token, row.features

    def _bind_peek(self, queued: int, new: int) -> _Peek:
        ids = np.zeros((1, new), np.int64)
        outputs = self._shallow_outputs(self._hidden[:, queued : queued + new])
        peek = self._peeks[queued, new] = _Peek(self._shallow.bind({"input_ids": ids}, outputs), ids)
        return peek

    def _shallow_outputs(self, hidden: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        return {"hidden": hidden, "draft": self._draft, "draft_probability": self._draft_probability}

    def _bind_verification(self, first: int, rows: int) -> Any:
        binding = self._bind_deep(self._hidden[:, :rows], self._first[first], rows - first)
        self._verifications[first, rows] = binding
        return binding

    def _bind_deep(self, hidden: npt.NDArray[np.float32], first: npt.NDArray[np.int64], told: int) -> Any:
        """A binding that reads hidden states [1, S, H] and writes outputs of the `told` rows from `first` [1] on."""
        outputs: dict[str, npt.NDArray[Any]] = {
            "logits": self._logits[:, :told],
            "token": self._token[:told],
            "features": self._features[:told],
        }
        return self._deep.bind({"hidden": hidden, "first": first}, outputs)

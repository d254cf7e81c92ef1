"""The answer so far: ids, what of their text was shown, and whether it is complete. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..common.detokenize import Detokenizer
from ..common.types import FinishReason, Origin, Tokens, TopLogprobs


class Answer:
    """Takes ids from whoever gave them and cuts the answer where it ends."""

    def __init__(self, detokenizer: Detokenizer, end_ids: Collection[int], max_tokens: int) -> None:
        self._detokenizer = detokenizer
        self._end_ids = end_ids
        self._max_tokens = max_tokens
        self.ids: list[int] = []
        """All ids of the answer; an id that ended it is not among them."""
        self.text: list[str] = []
        """What was shown, in pieces."""
        self.logprobs: list[float] = []
        self.reason: FinishReason | None = None
        """Set once the answer is complete."""
        self.end_id: int | None = None
        """The id that ended the answer, if one did."""
        self.by_origin = dict.fromkeys(Origin, 0)
        """Tokens that each origin gave."""
        self.degraded = False
        """Whether a token was shown that should have been verified."""

    @property
    def room(self) -> int:
        """How many more tokens the answer may have."""
        return self._max_tokens - len(self.ids)

    @property
    def shown_bytes(self) -> int:
        """UTF-8 bytes of the text shown."""
        return sum(len(piece.encode()) for piece in self.text)

    def take(
        self,
        ids: Sequence[int],
        origin: Origin,
        logprobs: Sequence[float] = (),
        degraded: bool = False,
        top_logprobs: Sequence[TopLogprobs] = (),
    ) -> Tokens | None:
        """What to show now that these ids are part of the answer; None when there is nothing.

        Ids past the end of the answer (an id that ends it, a stop string, max_tokens) are dropped, and `reason` is set.
        """
        if self.reason is not None:
            return None
        end = next((i for i, token in enumerate(ids) if token in self._end_ids), None)
        taken = ids[: min(len(ids) if end is None else end, self.room)]
        text = self._detokenizer.push(taken)
        if self._detokenizer.stopped:
            taken = taken[: self._detokenizer.used]
            self.reason = FinishReason.STOP
        elif len(taken) == self.room:
            self.reason = FinishReason.LENGTH
        elif end is not None:
            self.reason = FinishReason.STOP
            self.end_id = ids[end]
        return self._show(taken, text, origin, logprobs[: len(taken)], degraded, top_logprobs[: len(taken)])

    def pass_on(
        self,
        ids: Sequence[int],
        text: str,
        origin: Origin,
        logprobs: Sequence[float],
        top_logprobs: Sequence[TopLogprobs],
    ) -> Tokens | None:
        """Shows what was detokenized elsewhere: ids of another vocabulary."""
        return self._show(ids, text, origin, logprobs, False, top_logprobs)

    def end(self, reason: FinishReason, origin: Origin) -> Tokens | None:
        """Completes the answer as told from above; what was held back is shown."""
        if self.reason is not None:
            return None
        self.reason = reason
        return self._show((), "", origin, (), False, ())

    def _show(
        self,
        ids: Sequence[int],
        text: str,
        origin: Origin,
        logprobs: Sequence[float],
        degraded: bool,
        top_logprobs: Sequence[TopLogprobs],
    ) -> Tokens | None:
        if self.reason is not None:
            text += self._detokenizer.finish()
        if not ids and not text:
            return None
        self.ids.extend(ids)
        self.text.append(text)
        self.logprobs.extend(logprobs)
        self.by_origin[origin] += len(ids)
        self.degraded |= degraded
        return Tokens(tuple(ids), text, origin, tuple(logprobs), degraded, tuple(top_logprobs))

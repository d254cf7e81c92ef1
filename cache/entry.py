"""What a cache holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..common.types import FinishReason, Origin, Tokens, Usage


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete answer. Never one that was cut by a cancel or a deadline, nor one with degraded units."""

    ids: tuple[int, ...]
    text: str
    reason: FinishReason
    usage: Usage
    """As it was when the answer was made."""
    logprobs: tuple[float, ...] = ()
    """One per id when the request asked for them; as precise as the wire has them, in 32 bits."""

    def tokens(self) -> Tokens:
        """The answer as one event."""
        return Tokens(self.ids, self.text, Origin.CACHE, self.logprobs)

    def hit_usage(self) -> Usage:
        """Usage that a hit reports: the original counts, marked as cached, nothing billed."""
        return replace(self.usage, cached=True, billed_tokens=0)

"""What a cache holds, and the port of every store."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Protocol

from ..common.types import FinishReason, Origin, Tokens, Usage
from .keys import CacheKey


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete answer. Never one that was cut by a cancel or a deadline, nor one with degraded units."""

    ids: tuple[int, ...]
    text: str
    reason: FinishReason
    usage: Usage
    """As it was when the answer was made."""
    logprobs: tuple[float, ...] = ()
    """One per id when the request asked for them."""

    @property
    def size_bytes(self) -> int:
        """Memory that it holds, roughly: ids and logprobs are boxed, 8 bytes a reference and 32 a value."""
        return 400 + sys.getsizeof(self.text) + 40 * (len(self.ids) + len(self.logprobs))

    def tokens(self) -> Tokens:
        """The answer as one event."""
        return Tokens(self.ids, self.text, Origin.CACHE, self.logprobs)

    def hit_usage(self) -> Usage:
        """Usage that a hit reports: the original counts, marked as cached, nothing billed."""
        return replace(self.usage, cached=True, billed_tokens=0)


class Recorder:
    """Collects the events of one answer into an entry."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[float] = []
        self._degraded = False

    def add(self, tokens: Tokens) -> None:
        """More of the answer."""
        self._ids += tokens.ids
        self._texts.append(tokens.text)
        self._logprobs += tokens.logprobs
        self._degraded |= tokens.degraded

    def entry(self, reason: FinishReason, usage: Usage) -> Entry | None:
        """The answer, or None when it must not be kept."""
        if self._degraded or reason is FinishReason.CANCELLED:
            return None
        return Entry(tuple(self._ids), "".join(self._texts), reason, usage, tuple(self._logprobs))


class Store(Protocol):
    """A place for entries."""

    async def get(self, key: CacheKey) -> Entry | None:
        """The entry, unless it is absent or its time is over."""
        ...

    async def put(self, key: CacheKey, entry: Entry, ttl_s: float) -> None:
        """Keeps an entry for ttl_s seconds from now; reading it does not extend that."""
        ...

    async def purge(self, tenant: str) -> None:
        """Forgets all that a tenant has."""
        ...

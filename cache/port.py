"""The port of every store, and what passes through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from ..common.cache_types import Holdings, Scope
from ..common.types import FinishReason, Tokens, Usage
from .breaker import State
from .entry import Entry
from .keys import CacheKey


@dataclass(frozen=True, slots=True)
class Keeping:
    """On what terms a tenant's answers are kept. Where they use more, the oldest go."""

    ttl_s: float
    """From the moment it is kept; reading does not extend it."""
    max_entries: int | None = None
    max_bytes: int | None = None
    """Of encoded entries."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended."""

    reason: FinishReason
    usage: Usage


class Lead(ABC):
    """The right to compute the answer to one key, and the duty to tell it."""

    @abstractmethod
    def add(self, tokens: Tokens) -> None:
        """More of the answer, to be told to followers; does not wait for that."""

    @abstractmethod
    def finish(self, ending: Ending, keeping: Keeping) -> Awaitable[None]:
        """The answer is complete: keeps it, if it may be kept and nobody else has taken over, and ends the lead.

        Begins at once, and nobody has to await it: whoever asks this store from now on gets the answer, and others
        find the lead taken until they do.
        """

    @abstractmethod
    async def abandon(self) -> None:
        """Gives the lead up: a follower goes on from there. Does nothing after `finish` or an earlier call."""


class Follower(ABC):
    """Somebody who hears an answer that is computed elsewhere, from its start."""

    @abstractmethod
    async def next(self) -> Tokens | Ending | Lead | None:
        """What is new: more of the answer; its ending, after which nothing comes; the lead, when the leader is gone
        and this follower has heard all that it told; or None, when the store can no longer tell. After either of the
        last two the answer goes on from what was heard, and nobody else's doing can change that.
        """

    @abstractmethod
    async def leave(self) -> None:
        """Stops listening; safe any number of times."""


class Store(Protocol):
    """A place for answers. Whatever fails in it is a miss: no method but `purge` and `holdings` raises."""

    def start(self) -> None:
        """Begins what runs beside the calls; needs the event loop."""
        ...

    async def close(self) -> None:
        """Ends it."""
        ...

    async def get(self, key: CacheKey) -> Entry | None:
        """The entry, unless it is absent or its time is over."""
        ...

    async def holds(self, key: CacheKey) -> bool:
        """Whether there is an entry; for those who only ask, it counts as no use of it."""
        ...

    async def put(self, key: CacheKey, entry: Entry, keeping: Keeping) -> None:
        """Keeps an entry, in place of one that is there."""
        ...

    async def lease(self, key: CacheKey, lane: str) -> Entry | Lead | Follower | None:
        """The entry; else the lead, when nobody computes it in this lane; else the one to follow. None: a miss."""
        ...

    async def purge(self, scope: Scope) -> None:
        """Forgets all in a scope, under way or kept. Raises Unavailable when it can't be known to be forgotten."""
        ...

    async def holdings(self, tenants: Iterable[str]) -> dict[str, Holdings]:
        """What each of these tenants has. Raises Unavailable."""
        ...

    @property
    def state(self) -> State:
        """Whether it is asked at all."""
        ...

    @property
    def known(self) -> Holdings:
        """What it holds of all tenants, as far as this process has seen."""
        ...


class Observer:
    """What a store tells of its inner life; this one listens to nothing."""

    def evicted(self, why: Literal["space", "quota", "expired", "corrupt"], count: int = 1) -> None:
        """Entries were dropped."""

    def leased(self, outcome: Literal["led", "followed", "taken_over", "lost", "abandoned"]) -> None:
        """A lease was won, found held, taken over from a leader that is gone, lost to another, or given up."""

    def called(self, outcome: Literal["in_time", "late", "failed", "not_tried"]) -> None:
        """A call to a server came back, did not in its budget, failed, or was not made while the breaker is open."""

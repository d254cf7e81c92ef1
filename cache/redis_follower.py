"""One who follows a computation of another router.

It hears the leader's story from the start. When it finds no leader it gets the lease, and with it all that was told:
what it has heard by then is what it goes on from, so the text is the same for everyone, whoever finishes it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from ..common.types import Tokens
from .keys import CacheKey
from .port import Ending, Follower
from .recorder import Gap, Piece, Recorder
from .redis_lead import RedisLead

if TYPE_CHECKING:
    from .redis_store import Claim, RedisStore

_LOOK_S = 0.25
"""How often it looks without having been called."""
_SILENT = 3
"""So many looks in a row without an answer, and it goes on alone."""


class RedisFollower(Follower):
    """See `Follower`."""

    def __init__(self, store: RedisStore, key: CacheKey, claim: Claim) -> None:
        self._store = store
        self._key = key
        self._names = claim.names
        self._parts = 0
        self._told: deque[Piece | Ending] = deque()
        self._heard = Recorder()
        self._lead: RedisLead | None = None
        self._rung = asyncio.Event()
        self._deaf = store.bell.listen(claim.names.tail, self._rung.set)
        self._take(claim)

    async def next(self) -> Tokens | Ending | RedisLead | None:
        """What is new."""
        silent = 0
        while True:
            while self._told:
                told = self._told.popleft()
                if isinstance(told, Ending):
                    return told
                try:
                    fresh = self._heard.hear(told)
                except Gap:
                    await self.leave()
                    return None
                if fresh is not None:
                    return fresh
            if self._lead is not None:
                lead, self._lead = self._lead, None
                return lead
            claim = await self._store.claim(self._key, self._names.lane, self._parts)
            silent = silent + 1 if claim is None else 0
            if silent == _SILENT or (silent and not self._store.line.up):
                return None
            if claim is not None:
                self._take(claim)
            if not self._told and self._lead is None:
                await self._look_again()

    async def leave(self) -> None:
        """Stops listening."""
        self._deaf()
        self._deaf = lambda: None
        lead, self._lead = self._lead, None
        if lead is not None:
            await lead.abandon()

    def _take(self, claim: Claim) -> None:
        self._told.extend(claim.told)
        if claim.names != self._names:  # a purge has come between
            self._deaf()
            self._names = claim.names
            self._deaf = self._store.bell.listen(claim.names.tail, self._rung.set)
        if claim.kind == "lead":
            self._store.observer.leased("taken_over")
            pieces = [told for told in claim.told if isinstance(told, Piece)]
            if pieces:
                end = (pieces[-1].position + len(pieces[-1].ids), pieces[-1].text_at + len(pieces[-1].text.encode()))
            else:
                end = (len(self._heard.ids), self._heard.text_bytes) if claim.parts else (0, 0)
            self._lead = RedisLead(self._store, self._key, claim, self._heard, end)
        self._parts = claim.parts

    async def _look_again(self) -> None:
        """When the bell rings, or after a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._rung.wait()
        self._rung.clear()

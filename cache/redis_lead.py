"""The leader of a computation that several routers wait for.

It writes only while the lease is its own, and every write is one step inside Redis with that check: one that was
paused, and comes back after its lease has passed to another, changes nothing. It tells its story only when somebody
follows, and then from the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from ..common.types import Tokens
from .codec import encode_ending, encode_entry, encode_piece
from .keys import CacheKey
from .port import Ending, Keeping, Lead
from .recorder import Recorder
from .redis_scripts import FINISH, TELL

if TYPE_CHECKING:
    from .redis_store import Claim, RedisStore

STORY_MS = 60_000
"""How long a story is kept after its last part: what a follower may lag behind."""
MAX_STORY_BYTES = 1 << 19
"""Longer answers are computed by each router for itself."""
_PAUSE_S = 0.02
"""Between two parts of a story: what comes meanwhile goes with the next."""


class RedisLead(Lead):
    """See `Lead`."""

    def __init__(self, store: RedisStore, key: CacheKey, claim: Claim, said: Recorder, told: tuple[int, int]) -> None:
        self.names = claim.names
        self.holder = claim.holder
        self._where = claim.where
        self._store = store
        self._key = key
        self._said = said
        self._told = told
        """Where the story ends: ids, and bytes of text."""
        self._held = True
        self._more = asyncio.Event()
        self._teller: asyncio.Task[None] | None = None
        self._deaf = store.bell.listen(claim.names.tail, self.followed)
        store.leads.add(self)

    def add(self, tokens: Tokens) -> None:
        """More of the answer."""
        self._said.add(tokens)
        self._more.set()

    def followed(self) -> None:
        """Somebody follows: the story is told from now on."""
        if self._held and self._teller is None:
            self._more.set()
            self._teller = asyncio.create_task(self._tell())

    def lost(self) -> None:
        """The lease is another's: nothing is written any more."""
        if self._held:
            self._held = False
            self._deaf()
            self._deaf = lambda: None  # it knows this lead, and a ring of two stays until the garbage is collected
            self._store.leads.discard(self)
            if self._teller is not None:
                self._teller.cancel()

    def finish(self, ending: Ending, keeping: Keeping) -> Awaitable[None]:
        """Keeps the answer and ends the lease. All that this store asks for later stands behind it in the line."""
        if not self._held:
            return self._store.keep(self._store.beside(self._fall_silent()))
        self.lost()
        finished = self._post(ending, keeping)
        finished.add_done_callback(self._finished)
        return self._store.keep(finished if self._teller is None else self._store.beside(self._fall_silent(finished)))

    def _post(self, ending: Ending, keeping: Keeping) -> asyncio.Future[Any]:
        names, seal = self.names, self._store.seal
        tenant, model, name = self._where
        entry = self._said.entry(ending.reason, ending.usage)
        value, rest = b"", []
        if entry is not None:
            value = seal.close(names.entry, encode_entry(entry))
        else:
            # The teller's last part may stand before this one in the line, unanswered: it then comes twice, no harm.
            parts = (encode_piece(self._said.since(*self._told)), encode_ending(ending))
            rest = [seal.close(names.story, part) for part in parts]
        limits = self._store.limits(keeping)
        return self._store.line.post(
            FINISH,
            (names.lease, names.story, names.bells),
            (tenant, model, names.prefix, name, names.id, self.holder, names.tail, value, *limits, STORY_MS, *rest),
        )

    def _finished(self, finished: asyncio.Future[Any]) -> None:
        if not finished.cancelled() and (reply := finished.result()) is not None:
            self._store.took(self._key.tenant, reply)

    async def abandon(self) -> None:
        """Gives the lease back."""
        if not self._held:
            return
        self._store.observer.leased("abandoned")
        await self._fall_silent()
        await self._store.release(self.names, self.holder)

    async def _fall_silent(self, after: Awaitable[Any] | None = None) -> None:
        self.lost()
        if after is not None:
            await after
        if self._teller is not None:
            await asyncio.gather(self._teller, return_exceptions=True)

    async def _tell(self) -> None:
        """Part by part, as they come."""
        names, store, seal = self.names, self._store, self._store.seal
        while True:
            await self._more.wait()
            self._more.clear()
            if self._said.size_bytes > MAX_STORY_BYTES:
                await self._give_up()
            piece = self._said.since(*self._told)
            if piece.ids or piece.text:
                arguments = (self.holder, seal.close(names.story, encode_piece(piece)), store.lease_ms, STORY_MS)
                keys = (names.lease, names.story, names.bells)
                reply = await store.line.call(TELL, keys, (*arguments, names.tail))
                if reply == 0:
                    await self._give_up()
                elif reply is None:
                    self._more.set()  # perhaps it was told: a part that comes twice does no harm
                else:
                    self._told = (piece.position + len(piece.ids), piece.text_at + len(piece.text.encode()))
            await asyncio.sleep(_PAUSE_S)

    async def _give_up(self) -> None:
        """The lease is another's, or the story has no room: followers go on by themselves. Ends the teller."""
        self._store.observer.leased("lost")
        self._store.beside(self._store.release(self.names, self.holder))
        self.lost()
        await asyncio.sleep(0)

"""The store that routers share: plain Redis 7 or Valkey, without modules, Lua for what must be one step.

Every call has a time budget and ends as a miss when it is over; what comes back is opened with the mesh's secret before
it is believed, and what does not open is dropped.
"""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..common.cache_types import Holdings, Scope
from ..common.clock import Clock
from ..common.draws import draw_bytes, draw_hex
from ..common.errors import Unavailable
from ..common.secret import Secret
from ..common.telemetry import get_logger
from .breaker import State
from .codec import decode_entry, decode_told, encode_entry, is_entry
from .entry import Entry
from .keys import CacheKey
from .port import Ending, Keeping, Observer
from .recorder import Piece, Recorder
from .redis_bell import Bell
from .redis_follower import RedisFollower
from .redis_lead import STORY_MS, RedisLead
from .redis_line import Line
from .redis_names import Names
from .redis_scripts import ABANDON, CLAIM, DISCARD, GET, HOLDINGS, KEEP, PLACE, PURGE, RENEW
from .seal import TAG_BYTES, Seal, Unreadable

_log = get_logger()

_PATIENT_S = 1.0
"""Of calls that no request waits for."""
_BEATS = 8
"""Heartbeats in the time of a lease."""
_NO_LIMIT = 1 << 52


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of asking for an answer."""

    kind: str
    """hit, follow or lead."""
    names: Names
    where: tuple[str, str, str]
    """What stands for tenant, model and request."""
    told: tuple[Piece | Ending, ...]
    """Parts of the story that were not heard yet; of a hit, all of it."""
    parts: int = 0
    """Parts of the story until now."""
    holder: str = ""
    """Of a lead."""
    entry: Entry | None = None
    """Of a hit."""


class RedisStore:
    """See `Store`. All methods belong to the event loop's thread."""

    def __init__(
        self,
        url: str,
        secret: Secret,
        clock: Clock,
        observer: Observer | None = None,
        *,
        budget_s: float = 0.005,
        lease_s: float = 2.0,
    ) -> None:
        # The client's own retries and time limits are off: the line has better ones, and each of the client's would
        # cost a task or a timer.
        self._client = Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=_PATIENT_S, socket_timeout=None, protocol=2
        )
        self.observer = observer or Observer()
        self.line = Line(self._client, budget_s, clock, self.observer)
        self.bell = Bell(self._client)
        self.seal = Seal(secret)
        self.lease_ms = round(lease_s * 1000)
        self.leads: set[RedisLead] = set()
        self._held: dict[str, Holdings] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeps: set[asyncio.Future[Any]] = set()

    @property
    def state(self) -> State:
        """The breaker's."""
        return self.line.breaker.state

    @property
    def known(self) -> Holdings:
        """What tenants had when this process last kept something of theirs."""
        held = self._held.values()
        return Holdings(sum(one.entries for one in held), sum(one.bytes for one in held))

    def start(self) -> None:
        """Connects, and listens."""
        for work in (self.line.run(), self.bell.run(), self._beat()):
            self.beside(work)

    async def close(self) -> None:
        """Keeps what is being kept, and hangs up."""
        await asyncio.gather(*self._keeps)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def get(self, key: CacheKey) -> Entry | None:
        """The entry, unless it is absent, altered, or Redis does not answer in time."""
        reply = await self.line.call(GET, (), (*self.generation(key), self.seal.request(key)))
        if reply is None or reply[0] != b"hit":
            return None
        return self._opened(Names(reply[1].decode(), reply[2].decode()), reply[3])

    async def holds(self, key: CacheKey) -> bool:
        """See `Store`. False where Redis does not answer in time: then nobody would find it either."""
        reply = await self.line.call(GET, (), (*self.generation(key), self.seal.request(key)))
        return reply is not None and reply[0] == b"hit"

    async def put(self, key: CacheKey, entry: Entry, keeping: Keeping) -> None:
        """Keeps an entry, if Redis is there and has room."""
        name = self.seal.request(key)
        place = await self.line.call(PLACE, (), (*self.generation(key), name))
        if not place:
            return
        names = Names(place[0].decode(), place[1].decode())
        value = self.seal.close(names.entry, encode_entry(entry))
        where = (*self.generation(key), names.prefix, name, names.id)
        reply = await self.line.call(KEEP, (), (*where, value, *self.limits(keeping)))
        if reply is not None:
            self.took(key.tenant, reply)

    async def lease(self, key: CacheKey, lane: str) -> Entry | RedisLead | RedisFollower | None:
        """The entry, the lead, the one to follow, or a miss without any."""
        claim = await self.claim(key, lane)
        if claim is None:
            return None
        if claim.entry is not None:
            return claim.entry
        if claim.kind == "lead" and not claim.told:
            self.observer.leased("led")
            return RedisLead(self, key, claim, Recorder(), (0, 0))
        if claim.kind == "follow":
            self.observer.leased("followed")
        return RedisFollower(self, key, claim)

    async def claim(self, key: CacheKey, lane: str, parts: int = 0) -> Claim | None:
        """Asks for an answer of which so many parts were heard; None when that brought nothing."""
        token, where = draw_hex(8), (self.seal.tenant(key.tenant), self.seal.model(key.model), self.seal.request(key))
        holder = f"{token}:{self.bell.channel}"
        reply = await self.line.call(
            CLAIM,
            (),
            (*where[:2], _fresh(), where[2], lane, parts, token, self.bell.channel, self.lease_ms, STORY_MS),
            late=lambda reply: self._give_back(reply, lane, holder),
        )
        if reply is None or reply[0] == b"none":
            return None
        names = Names(reply[1].decode(), reply[2].decode(), lane)
        if reply[0] == b"hit":
            entry = self._opened(names, reply[3])
            if entry is None:
                return None
            return Claim("hit", names, where, _whole(entry), entry=entry)
        told: list[Piece | Ending] = []
        try:
            for part in reply[4]:
                told += self._told(names, part)
        except Unreadable:
            self.observer.evicted("corrupt")
            self._give_back(reply, lane, holder)
            return None
        return Claim(reply[0].decode(), names, where, tuple(told), reply[3], holder)

    async def release(self, names: Names, holder: str) -> None:
        """Gives a lease back, if it is held."""
        await self.line.call(ABANDON, (names.lease, names.bells), (holder, names.tail))

    async def purge(self, scope: Scope) -> None:
        """Draws a part of the generation anew. Raises Unavailable when Redis doesn't confirm it."""
        names = {"all": "all", "tenant": "t" + self.seal.tenant(scope.name), "model": "m" + self.seal.model(scope.name)}
        if await self.line.call(PURGE, (), (names[scope.kind], _fresh()), budget_s=_PATIENT_S) is None:
            raise Unavailable("Redis did not confirm the purge: try again once it is well", retry_after_s=1.0)

    async def holdings(self, tenants: Iterable[str]) -> dict[str, Holdings]:
        """What each of these tenants has. Raises Unavailable when Redis doesn't tell."""
        names = list(tenants)
        reply = await self.line.call(HOLDINGS, (), [self.seal.tenant(name) for name in names], budget_s=_PATIENT_S)
        if reply is None:
            raise Unavailable("Redis does not answer: try again once it is well", retry_after_s=1.0)
        return {name: Holdings(*reply[2 * at : 2 * at + 2]) for at, name in enumerate(names)}

    def generation(self, key: CacheKey) -> tuple[str, str, str]:
        """What scripts need to find, or to begin, the generation of a key."""
        return self.seal.tenant(key.tenant), self.seal.model(key.model), _fresh()

    def limits(self, keeping: Keeping) -> tuple[int, int, int]:
        """Time in ms, entries, bytes."""
        entries = _NO_LIMIT if keeping.max_entries is None else keeping.max_entries
        size = _NO_LIMIT if keeping.max_bytes is None else keeping.max_bytes
        return max(1, round(keeping.ttl_s * 1000)), entries, size

    def took(self, tenant: str, reply: list[int]) -> None:
        """What keeping an entry did."""
        kept, evicted, entries, size = reply
        if kept < 0:
            self.observer.leased("lost")
            return
        if evicted:
            self.observer.evicted("quota", evicted)
        self._held[tenant] = Holdings(entries, size)

    def beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Does something that nobody has to wait for."""
        task = asyncio.create_task(self._logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def keep(self, kept: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """An answer that is being kept; `close` waits for it.

        There are never many: each ends within the budget of its call, and the breaker opens when five in a row don't.
        """
        self._keeps.add(kept)
        kept.add_done_callback(self._keeps.discard)
        return kept

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 - the top of a task; logged
            _log.exception("defect", task="redis_store")

    def _opened(self, names: Names, value: bytes) -> Entry | None:
        """An entry that is what was kept under this name; another one is dropped."""
        try:
            return decode_entry(self.seal.open(names.entry, value))
        except Unreadable:
            self.observer.evicted("corrupt")
            self.beside(self._discard(names, value))
            return None

    def _told(self, names: Names, sealed: bytes) -> tuple[Piece | Ending, ...]:
        """A part of the story. Its last may be an entry that found no room as one. Raises Unreadable."""
        if is_entry(sealed[TAG_BYTES:]):
            return _whole(decode_entry(self.seal.open(names.entry, sealed)))
        return (decode_told(self.seal.open(names.story, sealed)),)

    async def _discard(self, names: Names, value: bytes) -> None:
        await self.line.call(DISCARD, (names.entry,), (value,))

    def _give_back(self, reply: list[Any], lane: str, holder: str) -> None:
        """A lease that came too late for whoever asked for it."""
        if reply[0] == b"lead":
            self.beside(self.release(Names(reply[1].decode(), reply[2].decode(), lane), holder))

    async def _beat(self) -> None:
        """Renews all leases that are held here, in one call."""
        while True:
            await asyncio.sleep(self.lease_ms / 1000 / _BEATS)
            leads = list(self.leads)
            if not leads:
                continue
            keys = [name for lead in leads for name in (lead.names.lease, lead.names.bells)]
            reply = await self.line.call(RENEW, keys, [self.lease_ms, *(lead.holder for lead in leads)])
            for lead, state in zip(leads, reply or (), strict=False):
                if state == 0:
                    self.observer.leased("lost")
                    lead.lost()
                elif state == 2:
                    lead.followed()


def _whole(entry: Entry) -> tuple[Piece, Ending]:
    """An entry as a story."""
    return Piece(0, 0, entry.ids, entry.text, entry.logprobs), Ending(entry.reason, entry.usage)


def _fresh() -> str:
    """A part of a generation that nobody has drawn before."""
    return urlsafe_b64encode(draw_bytes(6)).decode()

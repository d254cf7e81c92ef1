"""The store that needs no server: least recently used goes first, bytes are bounded, expiry is absolute."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from ..common.cache_types import Holdings, Scope
from ..common.clock import Clock
from .breaker import State
from .codec import decode_entry, encode_entry
from .entry import Entry
from .keys import CacheKey
from .memory_lease import MemoryFollower, MemoryLead, Runs
from .port import Keeping, Observer

_TENANT_SHARE = 0.5
"""One tenant may hold half of the bytes at most, so that a flood of one leaves the others' answers alone."""
_OVERHEAD_BYTES = 600
"""What dictionaries, key and numbers take up beside the bytes of an entry (tracemalloc, 10,000 entries: 570)."""


@dataclass(frozen=True, slots=True)
class _Kept:
    data: bytes
    expires: float
    model: str

    @property
    def size(self) -> int:
        return len(self.data) + _OVERHEAD_BYTES


class MemoryStore:
    """Entries of this process. All methods belong to the event loop's thread."""

    def __init__(self, max_bytes: int, clock: Clock, observer: Observer | None = None) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._observer = observer or Observer()
        self._tenants: dict[str, OrderedDict[str, _Kept]] = {}
        self._held: dict[str, int] = {}
        self._order: OrderedDict[CacheKey, None] = OrderedDict()
        self._runs = Runs(self._keep, self._observer)
        self.bytes = 0
        """Sum of the entries' sizes."""

    def __len__(self) -> int:
        return len(self._order)

    @property
    def state(self) -> State:
        """Nothing can come between."""
        return State.CLOSED

    @property
    def known(self) -> Holdings:
        """All that is kept."""
        return Holdings(len(self), self.bytes)

    def start(self) -> None:
        """Nothing runs beside the calls."""

    async def close(self) -> None:
        """Nothing to end."""

    async def get(self, key: CacheKey) -> Entry | None:
        """The entry, unless it is absent or its time is over; it becomes the most recently used."""
        entries = self._tenants.get(key.tenant)
        found = entries.get(key.digest) if entries else None
        if found is None:
            return None
        if found.expires <= self._clock.now():
            self._drop(key)
            self._observer.evicted("expired")
            return None
        self._order.move_to_end(key)
        self._tenants[key.tenant].move_to_end(key.digest)
        return decode_entry(found.data)

    async def holds(self, key: CacheKey) -> bool:
        """See `Store`."""
        entries = self._tenants.get(key.tenant)
        found = entries.get(key.digest) if entries else None
        return found is not None and found.expires > self._clock.now()

    async def put(self, key: CacheKey, entry: Entry, keeping: Keeping) -> None:
        """Keeps an entry; one larger than the tenant's share is not kept."""
        self._keep(key, entry, keeping)

    def _keep(self, key: CacheKey, entry: Entry, keeping: Keeping) -> None:
        self._drop(key)
        kept = _Kept(encode_entry(entry), self._clock.now() + keeping.ttl_s, key.model)
        share = int(self._max_bytes * _TENANT_SHARE)
        if keeping.max_bytes is not None:
            share = min(share, keeping.max_bytes)
        if kept.size > share or keeping.max_entries == 0:
            return
        while self._full(key.tenant, kept.size, share, keeping.max_entries):
            self._drop(self._oldest(key.tenant))
            self._observer.evicted("quota")
        while self.bytes + kept.size > self._max_bytes:
            self._drop(next(iter(self._order)))
            self._observer.evicted("space")
        self._tenants.setdefault(key.tenant, OrderedDict())[key.digest] = kept
        self._held[key.tenant] = self._held.get(key.tenant, 0) + kept.size
        self._order[key] = None
        self.bytes += kept.size

    async def lease(self, key: CacheKey, lane: str) -> Entry | MemoryLead | MemoryFollower:
        """The entry, the lead or the one to follow."""
        entry = await self.get(key)
        return entry or self._runs.join(key, lane)

    async def purge(self, scope: Scope) -> None:
        """Forgets all in a scope, and keeps nothing of it that is under way."""
        self._runs.forget(lambda key: _within(key, scope))
        tenants = [scope.name] if scope.kind == "tenant" else list(self._tenants)
        for tenant in tenants:
            for digest, kept in list(self._tenants.get(tenant, {}).items()):
                key = CacheKey(tenant, digest, kept.model)
                if _within(key, scope):
                    self._drop(key)

    async def holdings(self, tenants: Iterable[str]) -> dict[str, Holdings]:
        """What each of these tenants has."""
        return {name: Holdings(len(self._tenants.get(name, ())), self._held.get(name, 0)) for name in tenants}

    def _full(self, tenant: str, more: int, share: int, max_entries: int | None) -> bool:
        count = len(self._tenants.get(tenant, ()))
        return self._held.get(tenant, 0) + more > share or (max_entries is not None and count >= max_entries)

    def _oldest(self, tenant: str) -> CacheKey:
        digest, kept = next(iter(self._tenants[tenant].items()))
        return CacheKey(tenant, digest, kept.model)

    def _drop(self, key: CacheKey) -> None:
        entries = self._tenants.get(key.tenant, OrderedDict())
        found = entries.pop(key.digest, None)
        if found is None:
            return
        del self._order[CacheKey(key.tenant, key.digest, found.model)]
        self.bytes -= found.size
        self._held[key.tenant] -= found.size
        if not entries:
            del self._tenants[key.tenant], self._held[key.tenant]


def _within(key: CacheKey, scope: Scope) -> bool:
    return scope.kind == "all" or scope.name == (key.tenant if scope.kind == "tenant" else key.model)

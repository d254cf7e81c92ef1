"""The store that needs no server: least recently used goes first, bytes are bounded, expiry is absolute."""

from __future__ import annotations

from collections import OrderedDict

from ..common.clock import Clock
from .entry import Entry
from .keys import CacheKey

_TENANT_SHARE = 0.5
"""One tenant may hold half of the bytes at most, so that a flood of one leaves the others' answers alone."""


class MemoryStore:
    """Entries of this process. All methods belong to the event loop's thread."""

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._tenants: dict[str, OrderedDict[str, tuple[Entry, float]]] = {}
        self._held: dict[str, int] = {}
        self._order: OrderedDict[CacheKey, None] = OrderedDict()
        self.bytes = 0
        """Sum of the entries' sizes."""

    def __len__(self) -> int:
        return len(self._order)

    async def get(self, key: CacheKey) -> Entry | None:
        """The entry, unless it is absent or its time is over; it becomes the most recently used."""
        entries = self._tenants.get(key.tenant)
        found = entries.get(key.digest) if entries else None
        if found is None:
            return None
        entry, expires = found
        if expires <= self._clock.now():
            self._drop(key)
            return None
        self._order.move_to_end(key)
        self._tenants[key.tenant].move_to_end(key.digest)
        return entry

    async def put(self, key: CacheKey, entry: Entry, ttl_s: float) -> None:
        """Keeps an entry for ttl_s seconds from now; one larger than a tenant's share is not kept."""
        self._drop(key)
        size, share = entry.size_bytes, int(self._max_bytes * _TENANT_SHARE)
        if size > share:
            return
        while self._held.get(key.tenant, 0) + size > share:
            self._drop(CacheKey(key.tenant, next(iter(self._tenants[key.tenant]))))
        while self.bytes + size > self._max_bytes:
            self._drop(next(iter(self._order)))
        self._tenants.setdefault(key.tenant, OrderedDict())[key.digest] = (entry, self._clock.now() + ttl_s)
        self._held[key.tenant] = self._held.get(key.tenant, 0) + size
        self._order[key] = None
        self.bytes += size

    async def purge(self, tenant: str) -> None:
        """Forgets all that a tenant has."""
        for digest in list(self._tenants.get(tenant, ())):
            self._drop(CacheKey(tenant, digest))

    def _drop(self, key: CacheKey) -> None:
        entries = self._tenants.get(key.tenant, OrderedDict())
        found = entries.pop(key.digest, None)
        if found is None:
            return
        del self._order[key]
        self.bytes -= found[0].size_bytes
        self._held[key.tenant] -= found[0].size_bytes
        if not entries:
            del self._tenants[key.tenant], self._held[key.tenant]

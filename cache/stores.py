"""The store that a configuration names."""

from __future__ import annotations

from ..common.clock import Clock
from ..common.config_types import CacheConfig
from ..common.secret import Secret
from .memory import MemoryStore
from .port import Observer, Store


def open_store(config: CacheConfig, secret: Secret, clock: Clock, observer: Observer) -> Store:
    """The store in memory, or the one on Redis, which it takes `start` to reach."""
    if not config.shared:
        return MemoryStore(config.max_bytes, clock, observer)
    from .redis_store import RedisStore  # an edge node has no redis

    return RedisStore(config.url, secret, clock, observer, budget_s=config.budget_s, lease_s=config.lease_s)

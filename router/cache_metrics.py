"""What the result cache tells Prometheus. Labels are of fixed sets."""

from __future__ import annotations

from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

from ..cache.breaker import State
from ..cache.port import Observer, Store

Lookup = Literal["hit", "miss", "joined", "followed"]


class CacheMetrics(Observer):
    """The instruments of one router's cache."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lookups = Counter(
            "tiermesh_router_cache_total",
            "Requests that another's answer may serve: an entry, a computation here or at another router, or none.",
            ["result"],
            registry=registry,
        )
        self._evicted = Counter(
            "tiermesh_router_cache_evicted_total", "Entries that were dropped.", ["why"], registry=registry
        )
        self._leases = Counter(
            "tiermesh_router_cache_leases_total", "Leases of computations.", ["outcome"], registry=registry
        )
        self._calls = Counter(
            "tiermesh_router_cache_calls_total", "Calls to the shared store.", ["outcome"], registry=registry
        )
        self._entries = Gauge("tiermesh_router_cache_entries", "Entries, as far as known here.", registry=registry)
        self._bytes = Gauge("tiermesh_router_cache_bytes", "Bytes of these.", registry=registry)
        self._breaker = Gauge(
            "tiermesh_router_cache_breaker", "1 for the state of the breaker.", ["state"], registry=registry
        )

    def watch(self, store: Store) -> None:
        """Gauges read what they show when they are asked."""
        self._entries.set_function(lambda: store.known.entries)
        self._bytes.set_function(lambda: store.known.bytes)
        for state in State:
            self._breaker.labels(state.value).set_function(partial(_is_in, store, state))

    def counts(self) -> dict[str, dict[str, int]]:
        """All counts since the start, by what was counted and outcome."""
        named = {"lookups": self._lookups, "evicted": self._evicted, "leases": self._leases, "calls": self._calls}
        return {
            what: {
                next(iter(sample.labels.values())): int(sample.value)
                for family in counter.collect()
                for sample in family.samples
                if sample.name.endswith("_total")
            }
            for what, counter in named.items()
        }

    def looked_up(self, result: Lookup) -> None:
        """What a request found."""
        self._lookups.labels(result).inc()

    def evicted(self, why: Literal["space", "quota", "expired", "corrupt"], count: int = 1) -> None:
        """See `Observer`."""
        self._evicted.labels(why).inc(count)

    def leased(self, outcome: Literal["led", "followed", "taken_over", "lost", "abandoned"]) -> None:
        """See `Observer`."""
        self._leases.labels(outcome).inc()

    def called(self, outcome: Literal["in_time", "late", "failed", "not_tried"]) -> None:
        """See `Observer`."""
        self._calls.labels(outcome).inc()


class LimitCalls(Observer):
    """How calls for shared limits fare."""

    def __init__(self, registry: CollectorRegistry) -> None:
        words = "Calls for limits that routers share; those that brought nothing left this router to its own."
        self._calls = Counter("tiermesh_router_limit_calls_total", words, ["outcome"], registry=registry)

    def called(self, outcome: Literal["in_time", "late", "failed", "not_tried"]) -> None:
        """See `Observer`."""
        self._calls.labels(outcome).inc()


def _is_in(store: Store, state: State) -> bool:
    return store.state is state

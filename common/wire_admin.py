"""Proto ⇄ our types: what operators ask."""

from __future__ import annotations

from tiermesh.v1 import admin_pb2 as pb

from .cache_types import CacheStats, Holdings, Scope
from .errors import InvalidRequest


def scope_from(message: pb.PurgeCacheRequest) -> Scope:
    """Raises InvalidRequest when nothing, or an empty name, is asked to be purged."""
    kind = message.WhichOneof("scope")
    if kind == "tenant" and message.tenant:
        return Scope("tenant", message.tenant)
    if kind == "model" and message.model:
        return Scope("model", message.model)
    if kind == "everything" and message.everything:
        return Scope("all")
    raise InvalidRequest.field("scope", "is missing; name a tenant or a model, or set everything")


def scope_to(scope: Scope) -> pb.PurgeCacheRequest:
    """Raises InvalidRequest for a name that is no valid Unicode."""
    try:
        if scope.kind == "tenant":
            return pb.PurgeCacheRequest(tenant=scope.name)
        if scope.kind == "model":
            return pb.PurgeCacheRequest(model=scope.name)
    except ValueError as exc:
        raise InvalidRequest.field("scope", "must be valid Unicode text") from exc
    return pb.PurgeCacheRequest(everything=True)


def stats_from(message: pb.GetCacheStatsResponse) -> CacheStats:
    """Field by field."""
    counts: dict[str, dict[str, int]] = {}
    for count in message.counts:
        counts.setdefault(count.what, {})[count.outcome] = count.count
    tenants = {one.tenant: Holdings(one.entries, one.bytes) for one in message.tenants}
    return CacheStats(message.store, message.breaker, tenants, counts)


def stats_to(stats: CacheStats) -> pb.GetCacheStatsResponse:
    """Field by field."""
    return pb.GetCacheStatsResponse(
        store=stats.store,
        breaker=stats.breaker,
        tenants=[
            pb.TenantHoldings(tenant=name, entries=held.entries, bytes=held.bytes)
            for name, held in stats.tenants.items()
        ],
        counts=[
            pb.CacheCount(what=what, outcome=outcome, count=count)
            for what, outcomes in stats.counts.items()
            for outcome, count in outcomes.items()
        ],
    )

"""A running router as operators see it."""

from __future__ import annotations

import asyncio

from ..common.config_types import TenantConfig, TierConfig
from ..common.router_status import ConfigStatus, LimitStatus, RouterStatus, TenantStatus, TierStatus, WorkerStatus
from .core import Core
from .jobs import LARGEST_COST
from .lags import lag_bound
from .registry import Worker


async def status_of(core: Core, config: ConfigStatus) -> RouterStatus:
    """What is, now."""
    parts, now = core.parts, core.parts.clock.now()
    retries, allowed = parts.dispatcher.retries.counts(now)
    return RouterStatus(
        config=config,
        tiers=tuple(_tier(core, tier) for tier in core.directory.tiers.values()),
        tenants=tuple(await asyncio.gather(*(_tenant(core, one) for one in core.directory.tenants.values()))),
        workers=tuple(_worker(worker, now) for worker in parts.registry.workers),
        limits=core.shared.state if core.shared else "memory",
        retries=retries,
        retries_allowed=allowed,
    )


def _tier(core: Core, tier: TierConfig) -> TierStatus:
    scheduler = core.parts.slots.scheduler
    offered, attained = core.metrics.attained().get(tier.name, (0, 0))
    return TierStatus(
        name=tier.name,
        waiting=scheduler.queued(tier.name),
        running=scheduler.running_in(tier.name),
        lag=scheduler.lags[tier.name],
        lag_bound=lag_bound(core.tier_rules, LARGEST_COST),
        offered=offered,
        attained=attained,
        ttft_s=tier.ttft_s,
    )


async def _tenant(core: Core, tenant: TenantConfig) -> TenantStatus:
    running, waiting = core.parts.slots.scheduler.demand(tenant.name)
    everywhere = await core.shared.used(tenant) if core.shared else None
    used = everywhere or core.parts.limits.used(tenant)
    used |= {"concurrent": running, "queued": waiting}
    told = tuple(LimitStatus(name, amount, getattr(tenant.limits, name)) for name, amount in used.items())
    return TenantStatus(tenant.name, running, waiting, told)


def _worker(worker: Worker, now: float) -> WorkerStatus:
    load = worker.link.load
    return WorkerStatus(
        address=worker.address,
        state=worker.state(now),
        in_flight=worker.in_flight,
        limit=worker.limit,
        slots=load.slots if load else 0,
        running=load.running if load else 0,
        waiting=load.waiting if load else 0,
        kv_free=load.kv_free if load else 0.0,
        ejections=worker.standing.ejections,
        ejected_for_s=max(0.0, worker.standing.aside_until - now),
    )

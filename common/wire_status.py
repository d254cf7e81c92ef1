"""Proto ⇄ our types: a router's status."""

from __future__ import annotations

from tiermesh.v1 import admin_pb2 as pb

from .router_status import ConfigStatus, LimitStatus, RouterStatus, TenantStatus, TierStatus, WorkerStatus


def status_to(status: RouterStatus) -> pb.GetStatusResponse:
    """Field by field."""
    config = status.config
    return pb.GetStatusResponse(
        config=pb.ConfigStatus(
            source=config.source, since=config.since, taken=config.taken, kept=config.kept, fault=config.fault
        ),
        tiers=[_tier_to(tier) for tier in status.tiers],
        tenants=[
            pb.TenantStatus(
                name=tenant.name,
                running=tenant.running,
                waiting=tenant.waiting,
                limits=[pb.LimitStatus(name=one.name, used=one.used, limit=one.limit) for one in tenant.limits],
            )
            for tenant in status.tenants
        ],
        workers=[_worker_to(worker) for worker in status.workers],
        limits=status.limits,
        retries=status.retries,
        retries_allowed=status.retries_allowed,
    )


def status_from(message: pb.GetStatusResponse) -> RouterStatus:
    """Field by field."""
    config = message.config
    return RouterStatus(
        config=ConfigStatus(config.source, config.since, config.taken, config.kept, config.fault),
        tiers=tuple(_tier_from(tier) for tier in message.tiers),
        tenants=tuple(
            TenantStatus(
                one.name,
                one.running,
                one.waiting,
                tuple(LimitStatus(limit.name, limit.used, limit.limit) for limit in one.limits),
            )
            for one in message.tenants
        ),
        workers=tuple(_worker_from(worker) for worker in message.workers),
        limits=message.limits,
        retries=message.retries,
        retries_allowed=message.retries_allowed,
    )


def _tier_to(tier: TierStatus) -> pb.TierStatus:
    return pb.TierStatus(
        name=tier.name,
        waiting=tier.waiting,
        running=tier.running,
        lag=tier.lag,
        lag_bound=tier.lag_bound,
        offered=tier.offered,
        attained=tier.attained,
        ttft_ms=round(tier.ttft_s * 1e3),
    )


def _tier_from(tier: pb.TierStatus) -> TierStatus:
    return TierStatus(
        tier.name,
        tier.waiting,
        tier.running,
        tier.lag,
        tier.lag_bound,
        tier.offered,
        tier.attained,
        tier.ttft_ms / 1e3,
    )


def _worker_to(worker: WorkerStatus) -> pb.WorkerStatus:
    return pb.WorkerStatus(
        address=worker.address,
        state=worker.state,
        in_flight=worker.in_flight,
        limit=worker.limit,
        slots=worker.slots,
        running=worker.running,
        waiting=worker.waiting,
        kv_free=worker.kv_free,
        ejections=worker.ejections,
        ejected_for_ms=worker.ejected_for_s * 1e3,
    )


def _worker_from(worker: pb.WorkerStatus) -> WorkerStatus:
    return WorkerStatus(
        worker.address,
        worker.state,
        worker.in_flight,
        worker.limit,
        worker.slots,
        worker.running,
        worker.waiting,
        worker.kv_free,
        worker.ejections,
        worker.ejected_for_ms / 1e3,
    )

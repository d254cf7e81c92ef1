"""A router's own view of itself, laid out: configuration, tiers, tenants, workers."""

from __future__ import annotations

from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table

from tiermesh.common.router_status import RouterStatus, TenantStatus, TierStatus, WorkerStatus


def view(address: str, status: RouterStatus) -> RenderableType:
    """A line on the configuration, and three tables."""
    return Group(f"router {address}: {_config(status)}", _tiers(status), _tenants(status), _workers(status))


def _config(status: RouterStatus) -> str:
    config = status.config
    source = config.source or "no file"
    since = datetime.fromtimestamp(config.since).astimezone().isoformat(" ", "seconds")
    told = f"{source}, in force since {since}" if config.since else source
    if config.fault:
        told += f"; A NEWER ONE IS KEPT OUT: {config.fault}"
    return f"{told}; limits kept in {status.limits}; {status.retries} of {status.retries_allowed} retries"


def _tiers(status: RouterStatus) -> Table:
    table = _table("tier", "waiting", "running", "lag", "first token in time")
    for tier in status.tiers:
        lag = f"{tier.lag:.0f} of {tier.lag_bound:.0f}"
        table.add_row(tier.name, str(tier.waiting), str(tier.running), lag, _attained(tier))
    return table


def _attained(tier: TierStatus) -> str:
    if not tier.offered:
        return "nothing asked"
    share = tier.attained / tier.offered
    return f"{share:.1%} of {tier.offered} within {tier.ttft_s * 1000:.0f} ms"


def _tenants(status: RouterStatus) -> Table:
    table = _table("tenant", "running", "waiting", "limits used")
    for tenant in status.tenants:
        table.add_row(tenant.name, str(tenant.running), str(tenant.waiting), _used(tenant))
    return table


def _used(tenant: TenantStatus) -> str:
    return ", ".join(f"{limit.name} {limit.used:.0f} of {limit.limit:.0f}" for limit in tenant.limits)


def _workers(status: RouterStatus) -> Table:
    table = _table("worker", "state", "ours", "slots", "running", "waiting", "KV free", "set aside")
    for worker in status.workers:
        ours = f"{worker.in_flight} of {worker.limit}"
        told = (str(worker.slots), str(worker.running), str(worker.waiting), f"{worker.kv_free:.0%}")
        table.add_row(worker.address, _state(worker), ours, *told, f"{worker.ejections} times")
    return table


def _state(worker: WorkerStatus) -> str:
    return f"{worker.state} for {worker.ejected_for_s:.1f} s" if worker.ejected_for_s else worker.state


def _table(*columns: str) -> Table:
    return Table(*columns, title_justify="left", min_width=60)

"""What a router is made of, wired; follows the workers' coming and going and the configuration's changes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..cache.stores import open_store
from ..common.clock import Clock
from ..common.config_types import MeshConfig, TenantConfig
from ..common.errors import NoWorkers
from ..common.secret import Secret
from ..common.telemetry import get_logger
from .announced import Announced
from .dispatch import WORKER_GRACE_S, Dispatcher
from .estimates import Estimates
from .jobs import LARGEST_COST, TenantRule, TierRule
from .limits import Limits
from .metrics import Metrics, Snapshot
from .parts import Parts
from .registry import Registry, Worker
from .reload import check_reload
from .scheduler import Scheduler
from .slots import Slots
from .spacing import Spacing
from .tenants import Directory

if TYPE_CHECKING:
    from .shared_limits import SharedLimits

_log = get_logger()

_GONE_TENANT = TenantRule(weight=1.0, concurrent=1, queued=1)
"""For what still runs of a tenant that a reload took away."""


class Core:
    """The parts, and the few events that concern several of them."""

    def __init__(self, mesh: MeshConfig, clock: Clock) -> None:
        self._own_secret = Secret.random()
        self._told_own_secret = False
        self.directory = self.directory_of(mesh)
        self.metrics = Metrics(self._snapshot)
        self._listeners: list[Callable[[], None]] = []
        self._node_sessions: Callable[[], dict[str, int]] = dict
        self._refusal: asyncio.TimerHandle | None = None
        self._was_usable = False
        self._announced = Announced()
        self.spacing = Spacing()
        name, token = f"router@{mesh.router.advertise}", mesh.router.worker_token
        registry = Registry(name, token, clock, self.spacing, self._workers_changed)
        scheduler = Scheduler(
            _tier_rules(mesh),
            self._tenant_rule,
            largest_cost=LARGEST_COST,
            max_queued=mesh.router.queued,
            alpha=mesh.router.alpha,
        )
        self.shared = self._open_shared(mesh, clock)
        slots = Slots(scheduler, clock, self.shared.permits.changed) if self.shared else Slots(scheduler, clock)
        if self.shared is not None:
            self.shared.permits.serve(scheduler.demand, scheduler.reconsider, slots.turn)
        self.parts = Parts(
            registry=registry,
            slots=slots,
            dispatcher=Dispatcher(registry, clock, self.spacing, self.metrics.resumed),
            store=open_store(mesh.cache, self.directory.secret, clock, self.metrics.cache),
            limits=Limits(clock, self.shared),
            estimates=Estimates(),
            metrics=self.metrics,
            clock=clock,
        )
        self.metrics.cache.watch(self.parts.store)

    def start(self) -> None:
        """Connects to the workers and to the shared cache."""
        self._tell_of_own_secret()
        self.parts.store.start()
        if self.shared is not None:
            self.shared.start()
        self._follow()

    async def close(self) -> None:
        """Lets go of workers and timers."""
        if self._refusal is not None:
            self._refusal.cancel()
        self.parts.slots.close()
        await self.parts.registry.close()
        await self.parts.store.close()
        if self.shared is not None:
            await self.shared.close()

    @property
    def tier_rules(self) -> list[TierRule]:
        """The tiers as the schedule knows them."""
        return _tier_rules(self.directory.mesh)

    def listen(self, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the pool becomes usable or stops being so."""
        self._listeners.append(on_change)

    def watch_nodes(self, sessions: Callable[[], dict[str, int]]) -> None:
        """Tells where the metrics find the nodes' sessions."""
        self._node_sessions = sessions

    def directory_of(self, mesh: MeshConfig) -> Directory:
        """A configuration's directory; without a secret in it, under a random one that lasts as long as this router."""
        return Directory(mesh, mesh.secret or self._own_secret)

    def check(self, mesh: MeshConfig) -> None:
        """Raises ConfigError for what only a restart can change."""
        check_reload(self.directory.mesh, mesh)

    def reload(self, directory: Directory) -> None:
        """Other tenants, limits, shares and workers from now on; what runs goes on."""
        self.directory = directory
        self._tell_of_own_secret()
        self.parts.slots.scheduler.configure(
            _tier_rules(directory.mesh), directory.mesh.router.alpha, directory.mesh.router.queued
        )
        self._follow()
        self.parts.slots.turn()

    def worker_heard(self, address: str) -> None:
        """A worker announced itself. Raises InvalidRequest or Overloaded."""
        if self._announced.heard(address, self.parts.clock.now()):
            _log.info("worker_announced", worker=address)
            self._follow()

    def worker_left(self, address: str) -> None:
        """A worker that had announced itself leaves."""
        if self._announced.left(address):
            _log.info("worker_left", worker=address)
            self._follow()

    def forget_silent_workers(self) -> None:
        """Lets go of those that have not announced themselves again."""
        if over := self._announced.expired(self.parts.clock.now()):
            _log.warning("worker_leases_over", workers=list(over))
            self._follow()

    def _follow(self) -> None:
        self.parts.registry.follow(dict.fromkeys((*self.directory.mesh.router.workers, *self._announced.addresses)))

    def _tell_of_own_secret(self) -> None:
        if self.directory.mesh.secret is None and not self._told_own_secret:
            self._told_own_secret = True
            _log.info(
                "mesh_secret_random",
                detail="no mesh.secret_file: edge nodes get other key hashes from each router and at each start",
            )

    def _workers_changed(self) -> None:
        registry, slots = self.parts.registry, self.parts.slots
        usable = registry.any_usable
        slots.resize(registry.capacity, registry.room)
        if usable and self._refusal is not None:
            self._refusal.cancel()
            self._refusal = None
        elif not usable and self._refusal is None:
            self._refusal = asyncio.get_running_loop().call_later(WORKER_GRACE_S, self._refuse)
        if usable != self._was_usable:
            self._was_usable = usable
            for listener in self._listeners:
                listener()

    def _refuse(self) -> None:
        """All workers have been away for a while: nobody waits in vain."""
        self._refusal = None
        self.parts.slots.refuse_all(NoWorkers("no worker is ready; try again soon", retry_after_s=1.0))

    def _tenant_rule(self, name: str) -> TenantRule:
        tenant: TenantConfig | None = self.directory.tenants.get(name)
        if tenant is None:
            return _GONE_TENANT
        concurrent = tenant.limits.concurrent
        if self.shared is not None and (held := self.shared.permits.most(name)) is not None:
            concurrent = min(concurrent, held)
        return TenantRule(tenant.weight, concurrent, tenant.limits.queued)

    def _open_shared(self, mesh: MeshConfig, clock: Clock) -> SharedLimits | None:
        """Limits that are kept with other routers: where the cache is."""
        if not mesh.cache.shared:
            return None
        from .shared_limits import SharedLimits  # a router alone needs no redis

        me = f"{mesh.router.advertise}/{secrets.token_hex(6)}"
        return SharedLimits(mesh.cache, self.directory.secret, clock, me, self._concurrent, self.metrics.limit_calls)

    def _concurrent(self, tenant: str) -> int:
        known = self.directory.tenants.get(tenant)
        return known.limits.concurrent if known else _GONE_TENANT.concurrent

    def _snapshot(self) -> Snapshot:
        scheduler, registry = self.parts.slots.scheduler, self.parts.registry
        now = self.parts.clock.now()
        return Snapshot(
            queued={tier: scheduler.queued(tier) for tier in self.directory.tiers},
            running=scheduler.running,
            slots=scheduler.slots,
            room=scheduler.room,
            workers={worker.address: _facts(worker, now) for worker in registry.workers},
            nodes=self._node_sessions(),
        )


def _tier_rules(mesh: MeshConfig) -> list[TierRule]:
    return [TierRule(tier.name, tier.ttft_s, tier.min_share) for tier in mesh.tiers]


def _facts(worker: Worker, now: float) -> dict[str, float]:
    facts = {"up": float(worker.usable(now)), "in_flight": float(worker.in_flight), "limit": float(worker.limit)}
    if (load := worker.link.load) is not None:
        facts |= {
            "slots": load.slots,
            "running": load.running,
            "waiting": load.waiting,
            "kv_free": load.kv_free,
            "step_seconds": load.step_s,
            "prefix_hit": load.prefix_hit,
            "preemptions": load.preemptions,
        }
    return facts

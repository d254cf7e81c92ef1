"""Edge node → router → workers, all real and in this process: what breaks while an answer waits between two asks.

Two answers are under way when it happens. The exact one must be the workers' own, word for word; of the bounded one,
whose edge knows nothing and is sure of half of what it says, no more may be wrong than the ledger allows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tiermesh import Answer, AsyncClient, Retry
from tiermesh.cloud.loading import load_worker
from tiermesh.cloud.loads import Loads
from tiermesh.cloud.relay import WorkerPeer
from tiermesh.cloud.service import Worker
from tiermesh.common.clock import MonotonicClock
from tiermesh.common.config import default_mesh
from tiermesh.common.inference_servicer import InferenceServicer
from tiermesh.common.relay_server import RelayServicer
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.types import Quality, Request
from tiermesh.edge.drafting import Draft
from tiermesh.edge.ledger import ALLOWANCE, Account
from tiermesh.edge.node import EdgeNode
from tiermesh.edge.service import EdgeService
from tiermesh.edge.trust import Decision, Trust
from tiermesh.edge.units import Unit
from tiermesh.router.service import RouterService

LENGTH = 40
PROMPT = "dim the lights"
LEASE_S = 5.0
"""Less than the deadline of the standard tier, 30 s."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's directory, and an edge that knows nothing of it."""
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_model

    root = tmp_path_factory.mktemp("faults")
    write_random_model(root / "cloud", hidden=64, max_length=256)
    write_random_model(root / "other", hidden=64, max_length=256, seed=5)
    export_edge(root / "other", root / "stranger", bits=8)
    return root


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


class HandClock:
    """The system's monotonic clock, and what is added by hand."""

    added_s = 0.0

    def now(self) -> float:
        return time.monotonic() + self.added_s


@dataclass
class Server:
    """A worker and where it listens."""

    worker: Worker
    address: str
    server: RpcServer
    clock: HandClock

    @property
    def waiting(self) -> int:
        """Sessions between two asks."""
        return len(self.worker.engine._scheduler.idle)

    def outcomes(self, outcome: str) -> float:
        registry = self.worker.metrics.registry
        labels = {"kind": "verify", "outcome": outcome}
        return registry.get_sample_value("tiermesh_cloud_requests_total", labels) or 0.0

    async def kill(self) -> None:
        await self.server.stop(0)


class Gate:
    """Holds every answer's drafts before a unit, until it is opened."""

    def __init__(self, node: EdgeNode, at: int) -> None:
        self.held = 0
        self.open = asyncio.Event()
        self._at = at
        self._drafts = node.drafts
        node.drafts = self._held_drafts  # type: ignore[method-assign]

    def _held_drafts(self, request: Request, answer_start: int) -> Any:
        open_draft = self._drafts(request, answer_start)

        async def opened() -> Draft:
            draft = await open_draft()
            unit, count = draft.unit, 0

            async def held(*arguments: Any) -> Unit:
                nonlocal count
                count += 1
                if count == self._at:
                    self.held += 1
                    await self.open.wait()
                return await unit(*arguments)

            draft.unit = held  # type: ignore[method-assign]
            return draft

        return opened


class EveryOther(Trust):
    """Sure of every second beginning of a unit, whatever it is."""

    def decide(self, unit: Unit, quality: Quality, delta: float) -> Decision:
        if quality is not Quality.BOUNDED:
            return super().decide(unit, quality, delta)
        return Decision.ALONE if unit.ids[0] % 2 else Decision.ASK


@dataclass
class Mesh:
    """All parts, and the client of the edge node."""

    models: Path
    stack: AsyncExitStack
    state_dir: Path | None = None
    degraded_allowed: bool = True
    servers: list[Server] = field(default_factory=list)
    router: RouterService = None  # type: ignore[assignment]
    front: RpcServer = None  # type: ignore[assignment]
    upstream: str = "127.0.0.1:0"
    node: EdgeNode = None  # type: ignore[assignment]
    client: AsyncClient = None  # type: ignore[assignment]

    async def start_worker(self) -> None:
        clock = HandClock()
        config = replace(default_mesh({}).cloud, model=self.models / "cloud", device="cpu", threads=1, slots=4)
        worker, server = load_worker(replace(config, session_lease_s=LEASE_S)), RpcServer()
        worker.engine._clock = clock
        loads = Loads(worker.engine)
        server.add_inference(InferenceServicer(worker))
        server.add_relay(RelayServicer(partial(WorkerPeer.connect, worker, loads)))
        address = await server.start("127.0.0.1:0")
        worker.engine.start(asyncio.get_running_loop())
        telling = asyncio.create_task(loads.run())
        self.servers.append(Server(worker, address, server, clock))
        self.stack.callback(worker.engine.stop)
        self.stack.callback(telling.cancel)
        self.stack.push_async_callback(server.stop, 0)

    async def start_router(self) -> None:
        mesh = default_mesh({})
        addresses = tuple(server.address for server in self.servers)
        self.router = RouterService(replace(mesh, router=replace(mesh.router, workers=addresses)), MonotonicClock())
        self.front = RpcServer()
        self.front.add_inference(InferenceServicer(self.router))
        self.front.add_relay(RelayServicer(self.router.connect))
        self.upstream = await self.front.start(self.upstream)
        self.router.start(lambda: None)
        self.stack.push_async_callback(self.stop_router, self.router, self.front)
        registry = self.router._core.parts.dispatcher._registry
        await until(lambda: all(each.usable(time.monotonic()) for each in registry.workers))

    async def stop_router(self, router: RouterService, front: RpcServer) -> None:
        await router.close()
        await front.stop(0)

    async def start_node(self) -> None:
        edge = replace(default_mesh({}).edge, model=self.models / "stranger", upstream=self.upstream, metrics=None)
        edge = replace(edge, state_dir=self.state_dir, degraded_allowed=self.degraded_allowed)
        self.node = EdgeNode.load(replace(edge, listen="127.0.0.1:0"))
        self.node.trust = lambda request: EveryOther(lambda: None, request.sampling)  # type: ignore[method-assign]
        for mean, value in ((self.node.pace.travel_s, 1e-6), (self.node.pace.stream_step_s, 1e6)):
            mean.value = value
        self.node.pace.visits_to_probe = 1_000_000
        server, link = RpcServer(), asyncio.create_task(self.node.run())
        plain = await self.stack.enter_async_context(channel(self.upstream))
        server.add_inference(InferenceServicer(EdgeService(self.node, plain)))
        address = await server.start("127.0.0.1:0")
        self.stack.push_async_callback(self._stop_node, self.node, server, link)
        await until(lambda: self.node.tenants.known.is_set() and bool(self.node.upstream.models))
        self.client = await self.stack.enter_async_context(
            AsyncClient(address, api_key="demo-key", retry=Retry(attempts=1))
        )

    async def _stop_node(self, node: EdgeNode, server: RpcServer, link: asyncio.Task[None]) -> None:
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
        await server.stop(0)
        node.close()

    @property
    def account(self) -> Account:
        ((_, account),) = self.node.ledgers.accounts()
        return account

    async def begun(self) -> tuple[asyncio.Task[Answer], asyncio.Task[Answer], Gate]:
        """An exact and a bounded answer, both held before their fourth unit."""
        gate = Gate(self.node, at=4)
        exact, bounded = (
            asyncio.create_task(self.client.generate(PROMPT, max_tokens=LENGTH, cache="bypass", quality=quality))
            for quality in ("exact", "bounded")
        )
        await until(lambda: gate.held == 2)
        return exact, bounded, gate

    async def check(self, exact: Answer, bounded: Answer, degraded: bool = False) -> None:
        """The one is the worker's own, of the other no more is wrong than is allowed, and both are whole.

        What is marked as degraded is not under the bound; `degraded` says whether there must be such, or must not.
        """
        async with AsyncClient(self.servers[-1].address) as direct:
            own = await direct.generate(PROMPT, max_tokens=LENGTH)
            assert (exact.token_ids, exact.text) == (own.token_ids, own.text)
            prompt = self.node.text.encode_prompt(PROMPT)
            assert len(bounded.token_ids) == LENGTH or bounded.finish_reason.value == "stop"
            scores = await direct.score([*prompt, *bounded.token_ids], answer_start=len(prompt))
        marked = [span.degraded for span in bounded.spans for _ in range(span.tokens)]
        assert any(marked) == degraded
        pairs = zip(bounded.token_ids, scores.choices, marked, strict=True)
        wrong = sum(mine != theirs for mine, theirs, beyond in pairs if not beyond)
        account = self.account
        assert wrong > 0 or not account.shown
        assert wrong <= account.delta * account.shown + account.allowance
        await until(lambda: account.pending == 0)
        assert account.wrong + account.forfeited >= wrong, "every wrong token is on the books"
        assert account.wrong + account.forfeited <= account.delta * account.shown + ALLOWANCE


@asynccontextmanager
async def mesh_of(
    models: Path, workers: int = 1, state_dir: Path | None = None, degraded_allowed: bool = True
) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        mesh = Mesh(models, stack, state_dir, degraded_allowed)
        for _ in range(workers):
            await mesh.start_worker()
        await mesh.start_router()
        await mesh.start_node()
        yield mesh


async def test_a_worker_lost_between_asks(models: Path) -> None:
    async with mesh_of(models, workers=2) as mesh:
        exact, bounded, gate = await mesh.begun()
        await until(lambda: sum(server.waiting for server in mesh.servers) == 2)
        mesh.servers.sort(key=lambda server: server.waiting)
        lost = mesh.servers.pop(0) if mesh.servers[0].waiting else mesh.servers.pop()
        await lost.kill()
        gate.open.set()
        await mesh.check(await exact, await bounded)
        assert lost.waiting == 0


async def test_a_lease_lost_between_asks(models: Path) -> None:
    """At workers that are well: none is taken for one that fails."""
    async with mesh_of(models, workers=2) as mesh:

        def lost() -> float:
            return sum(server.outcomes("LEASE_EXPIRED") for server in mesh.servers)

        exact, bounded, gate = await mesh.begun()
        await until(lambda: sum(server.waiting for server in mesh.servers) == 2)
        for server in mesh.servers:
            server.clock.added_s = LEASE_S + 1
            server.worker.engine.cancel(0)
        await until(lambda: lost() == 2)
        for pool in (server.worker.engine._scheduler.pool for server in mesh.servers):
            assert pool.free == pool.total
        gate.open.set()
        await mesh.check(await exact, await bounded)
        registry = mesh.router._core.parts.dispatcher._registry
        records = [seen.standing for seen in registry.workers]
        assert [(record._failures, record.aside_until) for record in records] == [(0, 0.0)] * 2
        assert lost() == 2


@pytest.mark.parametrize("degraded_allowed", [True, False])
async def test_a_router_restarted_in_the_middle(models: Path, degraded_allowed: bool) -> None:
    """What must be verified waits; what may be shown degraded meanwhile is, and says so."""
    async with mesh_of(models, degraded_allowed=degraded_allowed) as mesh:
        (server,) = mesh.servers
        exact, bounded, gate = await mesh.begun()
        await mesh.stop_router(mesh.router, mesh.front)
        await until(lambda: not mesh.node.upstream.connected and server.waiting == 0)
        gate.open.set()
        if degraded_allowed:
            await bounded
        await mesh.start_router()
        await mesh.check(await exact, await bounded, degraded=degraded_allowed)


async def test_a_ledger_that_was_corrupted_shows_nothing_alone(models: Path, tmp_path: Path) -> None:
    """The same prompt is answered, and nothing but what the cloud verified."""
    (tmp_path / "ledger.json").write_bytes(b"0" * 64 + b'\n{"format":1,"accounts":[["demo"]]}')
    async with mesh_of(models, state_dir=tmp_path) as mesh, AsyncClient(mesh.servers[0].address) as direct:
        answer = await mesh.client.generate(PROMPT, max_tokens=LENGTH, cache="bypass", quality="bounded")
        own = await direct.generate(PROMPT, max_tokens=LENGTH)
        assert answer.token_ids == own.token_ids
        assert (mesh.account.shown, answer.usage.alone) == (0, 0)
        assert mesh.account.withheld > 0


@pytest.mark.parametrize("jump_s", [-40 * 365 * 86400.0, 40 * 365 * 86400.0], ids=["back", "forward"])
async def test_a_wall_clock_that_jumps_in_the_middle(
    models: Path, jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines, leases, the ledger and the policy know no time of day."""
    async with mesh_of(models) as mesh:
        exact, bounded, gate = await mesh.begun()
        jumped = time.time() + jump_s
        monkeypatch.setattr(time, "time", lambda: jumped)
        gate.open.set()
        await mesh.check(await exact, await bounded)
        again = await mesh.client.generate(PROMPT, max_tokens=8, cache="bypass", quality="exact")
        assert len(again.token_ids) == 8
        assert mesh.servers[0].outcomes("LEASE_EXPIRED") == 0

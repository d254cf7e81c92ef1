"""A real router and workers that speak the real relay over real gRPC, with a model that is a pure function."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

from tiermesh.common import wire, wire_events
from tiermesh.common.admin_servicer import AdminServicer
from tiermesh.common.clock import MonotonicClock
from tiermesh.common.config import MeshConfig, TenantConfig, default_mesh
from tiermesh.common.errors import Unavailable
from tiermesh.common.frames import (
    Ask,
    Close,
    Hello,
    Load,
    Open,
    RelayFinished,
    RelayTokens,
    SessionError,
    SessionMode,
    UpFrame,
    Verdict,
    Welcome,
)
from tiermesh.common.inference_servicer import InferenceServicer
from tiermesh.common.keys import key_hash
from tiermesh.common.registry_servicer import RegistryServicer
from tiermesh.common.relay_server import RelayServicer
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.rpc_errors import from_rpc_error
from tiermesh.common.secret import Secret
from tiermesh.common.types import Digests, Event, FinishReason, ModelInfo, Request, Usage
from tiermesh.router.service import RouterService
from tiermesh.v1 import inference_pb2_grpc

MODEL = ModelInfo("toy", Digests("m", "t", "c"), max_context=256, vocab_size=1000)


def toy_ids(request: Request, count: int) -> list[int]:
    """The toy model's answer: a function of prompt, seed and index alone."""
    seed = "" if request.sampling.greedy else str(request.sampling.seed)
    start = f"{request.prompt}|{seed}|"
    return [int(hashlib.sha256(f"{start}{i}".encode()).hexdigest(), 16) % 990 + 3 for i in range(count)]


def toy_text(ids: list[int] | tuple[int, ...]) -> str:
    """Each id is its number and a space."""
    return "".join(f"{i} " for i in ids)


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.002)


@dataclass
class ToyWorker:
    """A worker whose sessions run in tasks; `gate` holds tokens back, `per_frame` is how many come at once."""

    slots: int = 8
    step_s: float = 0.0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    opens: list[Open] = field(default_factory=list)
    closes: list[Close] = field(default_factory=list)
    peers: list[ToyPeer] = field(default_factory=list)
    stop_before: int | None = None
    """Sessions pause before this answer index until the gate opens."""
    server: RpcServer = field(default_factory=RpcServer)
    address: str = ""
    padding: str = ""
    """Text that each token brings along."""
    expected_token: str | None = None
    metadata: list[dict[str, str]] = field(default_factory=list)
    """What each router showed."""
    load: dict[str, Any] = field(default_factory=dict)
    """What its load frames say otherwise than the truth."""

    @property
    def running(self) -> int:
        return sum(len(peer.tasks) for peer in self.peers)

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        self.server.add_relay(RelayServicer(self._connect))
        self.address = await self.server.start(listen)
        return self.address

    async def kill(self) -> None:
        """All streams break at once."""
        await self.server.stop(0)

    def _connect(self, hello: Hello, metadata: Any, send: Any) -> ToyPeer:
        self.metadata.append(dict(metadata))
        peer = ToyPeer(self, send)
        self.peers.append(peer)
        send(Welcome("toy", (MODEL,)))
        peer.tell()
        return peer


class ToyPeer:
    """The sessions of one router."""

    def __init__(self, worker: ToyWorker, send: Any) -> None:
        self.worker = worker
        self.send = send
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.state: dict[int, tuple[Open, list[int]]] = {}
        self.telling: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        """How busy it is, now and four times a second."""
        self.send(replace(Load(self.worker.slots, 0, 0, 1.0, 0.001), **self.worker.load))
        self.telling = asyncio.get_running_loop().call_later(0.25, self.tell)

    def receive(self, frame: UpFrame) -> None:
        if isinstance(frame, Open):
            self.worker.opens.append(frame)
            self.state[frame.session] = (frame, list(frame.delivered_ids))
            if frame.mode is SessionMode.GENERATE:
                self._spawn(frame.session, frame.attempt)
        elif isinstance(frame, Ask):
            opening, known = self.state[frame.session]
            assert frame.position == len(known)
            known += frame.alone_ids
            own = toy_ids(opening.request, opening.request.max_tokens + 20)
            stands = 0
            at = len(known)
            while stands < len(frame.draft_ids) and frame.draft_ids[stands] == own[at + stands]:
                stands += 1
            known += own[at : at + stands + 1]
            if self.worker.stop_before is None or at < self.worker.stop_before or self.worker.gate.is_set():
                self.send(Verdict(frame.session, frame.attempt, at, stands, own[at + stands]))
            if frame.hand_over:
                self._spawn(frame.session, frame.attempt)
        elif isinstance(frame, Close):
            self.worker.closes.append(frame)
            self.state.pop(frame.session, None)
            if task := self.tasks.pop(frame.session, None):
                task.cancel()

    def _spawn(self, session: int, attempt: int) -> None:
        task = asyncio.create_task(self._run(session, attempt))
        self.tasks[session] = task
        task.add_done_callback(lambda _: self.tasks.pop(session, None))

    async def _run(self, session: int, attempt: int) -> None:
        opening, known = self.state[session]
        request = opening.request
        own = toy_ids(request, request.max_tokens)
        if isinstance(request.prompt, str) and "poison" in request.prompt:
            self.send(SessionError(session, attempt, Unavailable("poisoned")))
            return
        while len(known) < request.max_tokens:
            if self.worker.stop_before is not None and len(known) >= self.worker.stop_before:
                await self.worker.gate.wait()
            if self.worker.step_s:
                await asyncio.sleep(self.worker.step_s)
            position = len(known)
            known.append(own[position])
            self.send(
                RelayTokens(
                    session, attempt, position, (own[position],), toy_text([own[position]]) + self.worker.padding
                )
            )
            await asyncio.sleep(0)
        usage = Usage(prompt_tokens=5, completion_tokens=len(known))
        self.send(RelayFinished(session, attempt, FinishReason.STOP, usage))

    async def closed(self) -> None:
        if self.telling:
            self.telling.cancel()
        for task in list(self.tasks.values()):
            task.cancel()
        self.state.clear()


@dataclass
class Client:
    """A client of the public API."""

    stub: inference_pb2_grpc.InferenceServiceStub

    async def events(
        self, request: Request, key: str | None = "demo-key", timeout_s: float | None = 10.0
    ) -> list[Event]:
        """All events; raises our errors."""
        return [event async for event in self.stream(request, key, timeout_s)]

    def begin(self, request: Request, key: str = "demo-key") -> tuple[asyncio.Task[list[Event]], list[Event]]:
        """Reads in a task of its own; the list shows what has come."""
        events: list[Event] = []

        async def follow() -> list[Event]:
            async for event in self.stream(request, key):
                events.append(event)
            return events

        return asyncio.create_task(follow()), events

    async def stream(
        self, request: Request, key: str | None = "demo-key", timeout_s: float | None = 10.0
    ) -> AsyncIterator[Event]:
        """The events as they come."""
        metadata = [("authorization", f"Bearer {key}")] if key is not None else []
        call = self.stub.Generate(wire.request_to(request), metadata=metadata, timeout=timeout_s)
        try:
            async for message in call:
                yield wire_events.event_from(message)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()


@dataclass
class Router:
    """A router with its server and a client."""

    service: RouterService
    server: RpcServer
    address: str
    client: Client
    mesh: MeshConfig

    @property
    def running(self) -> int:
        """Jobs that hold a slot."""
        return self.service.metrics.registry.get_sample_value("tiermesh_router_running")  # type: ignore[return-value]

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value, 0 when it was never set."""
        return self.service.metrics.registry.get_sample_value(f"tiermesh_router_{name}", labels) or 0.0


def tenant(name: str, **changes: Any) -> TenantConfig:
    """A tenant like demo, with key `<name>-key`."""
    (demo,) = default_mesh({}).tenants
    limits = {k: changes.pop(k) for k in list(changes) if hasattr(demo.limits, k)}
    changes = {"key_hashes": (key_hash(f"{name}-key"),)} | changes
    return replace(demo, name=name, limits=replace(demo.limits, **limits), **changes)


@pytest.fixture
def toy() -> Any:
    """The kit's names, since test files can't import each other."""
    return type(
        "Kit",
        (),
        {
            "Worker": ToyWorker,
            "Client": Client,
            "ids": staticmethod(toy_ids),
            "text": staticmethod(toy_text),
            "until": staticmethod(until),
            "tenant": staticmethod(tenant),
            "MODEL": MODEL,
        },
    )


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Closes what a test started, in order."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start_worker(stack: AsyncExitStack) -> Callable[..., Awaitable[ToyWorker]]:
    """Starts a toy worker on a free port."""

    async def start(listen: str = "127.0.0.1:0", **settings: Any) -> ToyWorker:
        worker = ToyWorker(**settings)
        await worker.start(listen)
        stack.push_async_callback(worker.kill)
        return worker

    return start


@pytest.fixture
def start_router(stack: AsyncExitStack) -> Callable[..., Awaitable[Router]]:
    """Starts a router before these workers; waits until it is ready if there are any."""

    async def start(*workers: ToyWorker | str, wait: bool = True, stalled_s: float = 30.0, **changes: Any) -> Router:
        mesh = default_mesh({})
        addresses = tuple(w if isinstance(w, str) else w.address for w in workers)
        router = {k: changes.pop(k) for k in list(changes) if hasattr(mesh.router, k)}
        mesh = replace(mesh, router=replace(mesh.router, workers=addresses, **router), **changes)
        service, server = RouterService(mesh, MonotonicClock()), RpcServer()
        server.add_inference(InferenceServicer(service, stalled_s))
        server.add_relay(RelayServicer(service.connect, stalled_s))
        server.add_admin(AdminServicer(service.operations))
        server.add_registry(RegistryServicer(service))
        address = await server.start("127.0.0.1:0")
        service.start(lambda: None)
        stack.push_async_callback(service.close)
        stack.push_async_callback(server.stop, 0)
        chan = channel(address)
        stack.push_async_callback(chan.close)
        made = Router(service, server, address, Client(inference_pb2_grpc.InferenceServiceStub(chan)), mesh)
        if workers and wait:
            await until(lambda: service.ready)
        return made

    return start


SECRET = Secret(bytes(range(32)))


@pytest.fixture
def server(start_redis: Callable[..., Any]) -> Any:
    """A Redis."""
    return start_redis()


@pytest.fixture
def share(start_router: Any, server: Any) -> Callable[..., Awaitable[Router]]:
    """Starts a router that shares the cache. Its budget is wide: what is late on a busy machine is tested elsewhere."""

    async def start(worker: Any, *, lease_s: float = 5.0, budget_s: float = 5.0, **changes: Any) -> Router:
        cache = replace(default_mesh({}).cache, url=server.url, budget_s=budget_s, lease_s=lease_s)
        limits = {"concurrent": 500, "queued": 500, "requests_per_minute": 100_000, "tokens_per_minute": 10**7}
        tenants = changes.pop("tenants", (tenant("demo", **limits),))
        router = await start_router(worker, cache=cache, tenants=tenants, **{"secret": SECRET, **changes})
        await until(lambda: router.service._core.parts.store.line.up)
        return router

    return start

"""Edge node → router → worker, all real: what no visit labelled is audited, counted and reported; what is charged."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tiermesh import AsyncClient, Retry
from tiermesh.common.clock import MonotonicClock
from tiermesh.common.config import default_mesh
from tiermesh.common.config_types import TenantLimits
from tiermesh.common.errors import QuotaExceeded
from tiermesh.common.frames import Open
from tiermesh.common.inference_servicer import InferenceServicer
from tiermesh.common.relay_server import RelayServicer
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.types import Quality, Request
from tiermesh.edge.drift import Standing
from tiermesh.edge.ledger import Account
from tiermesh.edge.node import EdgeNode
from tiermesh.edge.service import EdgeService
from tiermesh.edge.trust import Decision, Trust
from tiermesh.edge.units import Unit
from tiermesh.router.service import RouterService

LIMITS = default_mesh({}).tenants[0].limits


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's directory, and two edges: the same weights quantized, and weights that know nothing of it."""
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_model

    root = tmp_path_factory.mktemp("edge_audits")
    write_random_model(root / "cloud", hidden=64, max_length=256)
    write_random_model(root / "other", hidden=64, max_length=256, seed=5)
    export_edge(root / "cloud", root / "twin", bits=8)
    export_edge(root / "other", root / "stranger", bits=8)
    return root


@pytest.fixture(scope="module")
def worker(models: Path) -> Iterator[str]:
    command = [sys.executable, "-P", "-m", "tiermesh.cloud.main", "--model", str(models / "cloud")]
    command += ["--listen", "127.0.0.1:0", "--device", "cpu", "--threads", "1", "--metrics", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    address = next((line.split()[1] for line in process.stdout if line.startswith("listening ")), None)
    assert address, f"the worker ended with {process.wait()}"
    yield address
    process.kill()
    process.wait()
    process.stdout.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Blind(Trust):
    """Trusts everything that may be trusted at all."""

    def decide(self, unit: Unit, quality: Quality, delta: float) -> Decision:
        return Decision.ALONE if quality is Quality.BOUNDED else super().decide(unit, quality, delta)


@dataclass
class Mesh:
    """A router and an edge node in this process, before a worker."""

    node: EdgeNode
    router: RouterService
    client: AsyncClient
    link: asyncio.Task[None]

    @property
    def account(self) -> Account:
        ((_, account),) = self.node.ledgers.accounts()
        return account

    def of_node(self, name: str, **labels: str) -> float:
        return self.node.metrics.registry.get_sample_value(f"tiermesh_edge_{name}", labels) or 0.0

    def of_router(self, name: str, **labels: str) -> float:
        return self.router.metrics.registry.get_sample_value(f"tiermesh_router_{name}", labels) or 0.0


@asynccontextmanager
async def mesh_of(
    model: Path, worker: str, state_dir: Path | None = None, limits: TenantLimits = LIMITS
) -> AsyncIterator[Mesh]:
    mesh = default_mesh({})
    mesh = replace(mesh, tenants=tuple(replace(tenant, limits=limits) for tenant in mesh.tenants))
    router = RouterService(replace(mesh, router=replace(mesh.router, workers=(worker,))), MonotonicClock())
    front, server = RpcServer(), RpcServer()
    front.add_inference(InferenceServicer(router))
    front.add_relay(RelayServicer(router.connect))
    upstream = await front.start("127.0.0.1:0")
    router.start(lambda: None)
    await until(lambda: router.ready)
    edge = replace(mesh.edge, model=model, upstream=upstream, listen="127.0.0.1:0", metrics=None, state_dir=state_dir)
    node = EdgeNode.load(edge)
    node.trust = lambda request: Blind(lambda: None, request.sampling)  # type: ignore[method-assign]
    link = asyncio.create_task(node.run())
    async with channel(upstream) as plain:
        server.add_inference(InferenceServicer(EdgeService(node, plain)))
        address = await server.start("127.0.0.1:0")
        try:
            await until(lambda: node.tenants.known.is_set() and bool(node.upstream.models))
            async with AsyncClient(address, api_key="demo-key", retry=Retry(attempts=1)) as client:
                yield Mesh(node, router, client, link)
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)
            await server.stop(0)
            node.close()
            await router.close()
            await front.stop(0)


async def test_an_unvisited_answer_is_labelled_by_an_audit(models: Path, worker: str) -> None:
    """The labels are the worker's own choices, token by token; nobody is billed for them."""
    async with mesh_of(models / "twin", worker) as mesh, AsyncClient(worker) as direct:
        opens: list[Open] = []
        send = mesh.node.upstream.link._send

        def noted(frame) -> None:
            opens.extend([frame] if isinstance(frame, Open) else [])
            send(frame)

        mesh.node.upstream.link._send = noted  # type: ignore[method-assign]
        answer = await mesh.client.generate("dim the lights", max_tokens=40)
        assert (answer.usage.asks, len(answer.token_ids)) == (0, 40)
        await until(lambda: mesh.of_node("audits_total", outcome="labelled") == 1)
        prompt = mesh.node.text.encode_prompt("dim the lights")
        wrong = 0
        for i, token in enumerate(answer.token_ids):
            own = await direct.generate([*prompt, *answer.token_ids[:i]], max_tokens=1)
            wrong += own.token_ids != (token,)
        account = mesh.account
        assert (account.shown, account.pending, account.right, account.wrong) == (40, 0, 40 - wrong, wrong)
        assert account.right > 20, "the twin is the worker's own model, quantized"
        # The node may have opened a session for the answer itself, too, and asked nothing there.
        (audit,) = (frame for frame in opens if frame.request.request_id != answer.request_id)
        assert (audit.request.tier, audit.tenant) == ("batch", "demo"), "the lowest tier of the tenant"
        await until(lambda: mesh.of_router("edge_labelled_tokens_total", node="") == 40)
        assert mesh.of_router("edge_alone_tokens_total", node="") == 40
        assert mesh.of_router("edge_wrong_tokens_total", node="") == wrong
        assert mesh.of_router("edge_audits_total", node="", outcome="labelled") == 1
        read = mesh.of_router("edge_audit_tokens_total", node="")
        assert read == mesh.of_node("audit_tokens_total") == answer.usage.prompt_tokens + 40
        assert mesh.of_router("tokens_total", origin="edge") == 40
        assert mesh.of_router("tokens_total", origin="cloud") == 0
        assert mesh.of_router("running") == 0


async def test_an_id_that_ends_the_answer_is_labelled_too(models: Path, worker: str) -> None:
    async with mesh_of(models / "twin", worker) as mesh:
        free = await mesh.client.generate("dim the lights", max_tokens=20, cache="bypass")
        await until(lambda: mesh.account.pending == 0)
        before = mesh.account.shown
        stop = next(token for i, token in enumerate(free.token_ids) if i > 3 and token not in free.token_ids[:i])
        answer = await mesh.client.generate("dim the lights", max_tokens=20, stop_ids=[stop], cache="bypass")
        assert stop not in answer.token_ids
        assert mesh.account.shown - before == len(answer.token_ids) + 1
        await until(lambda: mesh.account.pending == 0)
        assert mesh.account.right + mesh.account.wrong == mesh.account.shown


async def test_a_lying_edge_is_stopped_and_its_answers_are_the_workers_own(models: Path, worker: str) -> None:
    """Sure of everything, and always wrong."""
    async with mesh_of(models / "stranger", worker) as mesh, AsyncClient(worker) as direct:
        for number in range(8):
            await mesh.client.generate(f"dim the lights {number}", max_tokens=32)
            await until(lambda: mesh.account.pending == 0)
        account = mesh.account
        assert account.wrong <= account.delta * account.shown + 64
        assert account.watch.standing is not Standing.GOOD
        causes = [mesh.of_node("withheld_total", cause=cause) for cause in ("ledger", "drift")]
        assert sum(causes) >= 6, "two answers of 32 tokens were shown alone at most; the others asked, once at least"
        assert mesh.of_node("trusted", tenant="demo") == 0
        assert mesh.of_node("unlabelled_tokens", tenant="demo") == 0
        mine = await mesh.client.generate("what now", max_tokens=32)
        theirs = await direct.generate("what now", max_tokens=32)
        assert mine.token_ids == theirs.token_ids


async def test_audits_wait_for_the_link_and_end_with_the_node(models: Path, worker: str, tmp_path: Path) -> None:
    """Down: the answer's tokens stay unlabelled. Stopped: they are forfeited at the next start."""
    async with mesh_of(models / "twin", worker) as mesh:
        link = mesh.node.upstream.link
        held = asyncio.Event()
        wait, link.wait_connected = link.wait_connected, lambda _: held.wait()  # type: ignore[method-assign,assignment]
        answer = await mesh.client.generate("dim the lights", max_tokens=24)
        assert answer.usage.asks == 0
        assert mesh.account.pending == 24
        link.wait_connected = wait  # type: ignore[method-assign]
        held.set()
        await until(lambda: mesh.account.pending == 0)
        assert mesh.account.right + mesh.account.wrong == 24
    async with mesh_of(models / "twin", worker, tmp_path) as mesh:
        tab = mesh.node.ledgers.tab("demo", mesh.node.upstream.models[0].digests.model, 0.05)
        for _ in range(200):
            tab.verified(16, 16)
        await until(lambda: not tab.refuses(16))
        link = mesh.node.upstream.link
        link.wait_connected = lambda _: asyncio.Event().wait()  # type: ignore[method-assign,assignment]
        await mesh.client.generate("dim the lights", max_tokens=16)
        assert mesh.account.pending == 16
    async with mesh_of(models / "twin", worker, tmp_path) as mesh:
        mesh.node.ledgers.tab("demo", mesh.node.upstream.models[0].digests.model, 0.05)
        assert (mesh.account.shown, mesh.account.forfeited, mesh.account.pending) == (16, 16, 0)


async def test_a_full_queue_gives_up_the_oldest(models: Path, worker: str) -> None:
    async with mesh_of(models / "twin", worker) as mesh:
        mesh.link.cancel()
        await asyncio.gather(mesh.link, return_exceptions=True)
        ledgers, audits = mesh.node.ledgers, mesh.node.audits
        tab = ledgers.tab("demo", mesh.node.upstream.models[0].digests.model, 0.05)
        assert tab.account is not None
        tab.account.allowance = 1.0  # too poor for a coin: every audit is certain
        for number in range(70):
            tab.show(number, 1)
            audits.ended(tab, Request("x", 80), "demo", 3, tuple(range(number + 1)))
        assert mesh.of_node("audits_total", outcome="dropped") == 6
        assert (tab.account.forfeited, tab.account.pending) == (6, 64)
        assert mesh.of_node("unlabelled_tokens", tenant="demo") == 64


async def test_a_refusal_over_the_limit_costs_nothing(models: Path, worker: str) -> None:
    """Whoever tries again when told gets in: charged for each refusal, a tenant would stay over its limit for ever."""
    async with mesh_of(models / "twin", worker, limits=replace(LIMITS, requests_per_minute=3)) as mesh:

        async def ask() -> float | None:
            try:
                await mesh.client.generate("dim the lights", max_tokens=4, quality="exact", cache="bypass")
            except QuotaExceeded as refused:
                return refused.retry_after_s
            return None

        delays = [delay for delay in [await ask() for _ in range(12)] if delay is not None]
        # Frames keep their order: the last request was judged behind the reports of nearly all before it. The report of
        # the third answer may have come too late to stop a fourth, and two are 40 s.
        assert len(delays) >= 6
        assert delays[-1] < 45, "each refusal that was charged would have added 20 s"

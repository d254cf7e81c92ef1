"""An edge node in front of a real worker: whose text is it, and what becomes of it when the worker goes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import tiermesh
from tiermesh import AsyncClient, Origin, Quality, Retry
from tiermesh.common.config import default_mesh
from tiermesh.common.frames import Open, Policy, TenantPolicy, TierPolicy
from tiermesh.common.inference_servicer import InferenceServicer
from tiermesh.common.keys import key_hash, salted_hash
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.types import Request
from tiermesh.edge.chooser import Pace
from tiermesh.edge.node import EdgeNode
from tiermesh.edge.service import EdgeService
from tiermesh.edge.trust import Decision, Trust
from tiermesh.edge.units import UNIT_TOKENS, Unit

SALT = bytes(range(16))
TENANT = TenantPolicy("demo", (salted_hash(SALT, key_hash("demo-key")),), ("standard",), Quality.EDGE)
POLICY = Policy((TENANT,), (TierPolicy("standard", 0.2, 30.0),), valid_s=1000.0, salt=SALT)
PROMPTS = ["dim the kitchen lights", "turn the heating down\n", "def read(path):\n", '[{"device"', "for name"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's directory, and two edges: the same weights quantized, and weights that know nothing of it."""
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_model

    root = tmp_path_factory.mktemp("edge_worker")
    write_random_model(root / "cloud", hidden=64, max_length=256)
    write_random_model(root / "other", hidden=64, max_length=256, seed=5)
    export_edge(root / "cloud", root / "twin", bits=8)
    export_edge(root / "other", root / "stranger", bits=8)
    return root


def start_worker(model: Path, listen: str = "127.0.0.1:0") -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-P", "-m", "tiermesh.cloud.main", "--model", str(model), "--listen", listen]
    command += ["--device", "cpu", "--threads", "1", "--metrics", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if line.startswith("listening "):
            return process, line.split()[1]
    raise AssertionError(f"the worker ended with {process.wait()}")


@pytest.fixture(scope="module")
def worker(models: Path) -> Iterator[str]:
    process, address = start_worker(models / "cloud")
    yield address
    process.kill()
    process.wait()
    process.stdout.close()


@asynccontextmanager
async def edge(model: Path, upstream: str, tenant: TenantPolicy = TENANT) -> AsyncIterator[EdgeNode]:
    """A node in this process, linked to `upstream`; `node.client` asks it."""
    config = replace(default_mesh({}).edge, model=model, listen="127.0.0.1:0", upstream=upstream, metrics=None)
    node, server = EdgeNode.load(config), RpcServer()
    node.tenants.replace(replace(POLICY, tenants=(tenant,)))
    async with channel(upstream) as plain:
        server.add_inference(InferenceServicer(EdgeService(node, plain)))
        address = await server.start("127.0.0.1:0")
        link = asyncio.create_task(node.run())
        try:
            assert await node.upstream.link.wait_connected(10)
            async with AsyncClient(address, api_key="demo-key", retry=Retry(attempts=1)) as client:
                node.client = client  # type: ignore[attr-defined]
                yield node
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)
            await server.stop(0)
            node.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


GREEDY, WARM = {"temperature": 0.0}, {"temperature": 0.8, "seed": 7}
FILTERED = {"temperature": 1.0, "seed": 9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}
BIASED = WARM | {"logit_bias": {12: -4.0, 40: 3.0, 41: 2.5}, "presence_penalty": 0.5}
EXACT = replace(TENANT, quality=Quality.EXACT)


@pytest.mark.parametrize("model", ["twin", "stranger"])
@pytest.mark.parametrize("sampling", [GREEDY, WARM, FILTERED, BIASED], ids=["greedy", "warm", "filtered", "biased"])
async def test_exact_text_is_the_workers_own(models: Path, worker: str, model: str, sampling: dict) -> None:
    async with edge(models / model, worker, EXACT) as node, AsyncClient(worker) as direct:
        edge_tokens = 0
        patient(node)
        for prompt in PROMPTS:
            options = {"max_tokens": 40, "stop": ["\n\n", " li"], "top_logprobs": 2} | sampling
            mine = await node.client.generate(prompt, **options)
            theirs = await direct.generate(prompt, **options)
            assert (mine.token_ids, mine.text, mine.finish_reason) == (
                theirs.token_ids,
                theirs.text,
                theirs.finish_reason,
            )
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
            assert [[i for i, _ in top] for top in mine.top_logprobs] == [
                [i for i, _ in top] for top in theirs.top_logprobs
            ]
            assert mine.usage.alone == 0
            assert mine.usage.asks >= 1
            edge_tokens += sum(span.tokens for span in mine.spans if span.origin is Origin.EDGE)
        assert (edge_tokens > 50) == (model == "twin"), "only the twin's drafts stand"


def impatient(node: EdgeNode) -> None:
    """Makes streaming look better than any visit."""
    for mean, value in ((node.pace.travel_s, 10.0), (node.pace.verify_s, 1.0), (node.pace.stream_step_s, 1e-6)):
        mean.value = value


def patient(node: EdgeNode) -> None:
    """Makes any visit look better than streaming."""
    for mean, value in ((node.pace.travel_s, 1e-6), (node.pace.verify_s, 1e-6), (node.pace.stream_step_s, 1e6)):
        mean.value = value
    node.pace.visits_to_probe = 1_000_000


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
async def test_a_hand_over_goes_on_as_the_worker_would(models: Path, worker: str, sampling: dict) -> None:
    async with edge(models / "stranger", worker, EXACT) as node, AsyncClient(worker) as direct:
        for prompt in PROMPTS:
            impatient(node)
            mine = await node.client.generate(prompt, max_tokens=40, stop=[" li"], **sampling)
            theirs = await direct.generate(prompt, max_tokens=40, stop=[" li"], **sampling)
            assert (mine.token_ids, mine.text) == (theirs.token_ids, theirs.text)
            assert (mine.usage.asks, mine.usage.handed_over) == (1, True)
            assert ("cloud", "decode") in {(timing.hop, timing.stage) for timing in mine.timings}


def alone_first() -> Callable[[Request], Trust]:
    """Trusts the first unit that it sees, and no other."""
    seen = 0

    class AloneFirst(Trust):
        def decide(self, unit: Unit, quality: Quality, delta: float) -> Decision:
            nonlocal seen
            # Begun units are looked at too, on the model's thread; only a whole one counts as seen.
            seen += threading.current_thread() is threading.main_thread()
            return Decision.ALONE if seen <= 1 else Decision.ASK

    return lambda request: AloneFirst(lambda: None, request.sampling)


@pytest.mark.parametrize("hand_over", [False, True])
async def test_after_a_unit_shown_alone_the_worker_goes_on_from_it(models: Path, worker: str, hand_over: bool) -> None:
    """What the cloud adds is what it gives after the same beginning."""
    bounded = replace(TENANT, quality=Quality.BOUNDED)
    async with edge(models / "stranger", worker, bounded) as node, AsyncClient(worker) as direct:
        node.trust = alone_first()  # type: ignore[method-assign]
        (impatient if hand_over else patient)(node)
        answer = await node.client.generate("dim the lights", max_tokens=40)
        assert (answer.usage.alone, answer.usage.handed_over) == (1, hand_over)
        assert (answer.usage.asks > 1) is not hand_over
        alone = answer.spans[0].tokens if hand_over else UNIT_TOKENS
        given = node.text.encode_prompt("dim the lights") + list(answer.token_ids[:alone])
        rest = await direct.generate(given, max_tokens=40 - alone)
        assert answer.token_ids[alone:] == rest.token_ids
        assert answer.text.endswith(rest.text)


async def test_an_overloaded_node_hands_over_whole(models: Path, worker: str) -> None:
    async with edge(models / "twin", worker, EXACT) as node, AsyncClient(worker) as direct:
        node.admission.wait_s = lambda: 9.0  # type: ignore[method-assign]
        mine = await node.client.generate("dim the lights", max_tokens=20)
        theirs = await direct.generate("dim the lights", max_tokens=20)
        assert mine.token_ids == theirs.token_ids
        assert {span.origin for span in mine.spans} == {Origin.CLOUD}
        assert (mine.usage.asks, mine.usage.handed_over) == (0, True)


async def test_a_foreign_tokenizer_gets_text_only(models: Path, worker: str) -> None:
    async with edge(models / "twin", worker, EXACT) as node, AsyncClient(worker) as direct:
        node.upstream.speaks = lambda _: False  # type: ignore[method-assign]
        mine = await node.client.generate("dim the lights", max_tokens=20, stop=[" li"])
        theirs = await direct.generate("dim the lights", max_tokens=20, stop=[" li"])
        assert (mine.text, mine.token_ids, mine.finish_reason) == (theirs.text, theirs.token_ids, theirs.finish_reason)
        assert mine.usage.prompt_tokens == theirs.usage.prompt_tokens


async def test_scores_come_from_the_worker(models: Path, worker: str) -> None:
    async with edge(models / "twin", worker) as node, AsyncClient(worker) as direct:
        assert await node.client.score("dim the lights") == await direct.score("dim the lights")


async def test_errors_of_the_worker_come_up_as_they_are(models: Path, worker: str) -> None:
    async with edge(models / "twin", worker, EXACT) as node:
        with pytest.raises(tiermesh.InvalidRequest, match="context of 256"):
            await node.client.generate("x", max_tokens=256)
        with pytest.raises(tiermesh.ModelNotFound):
            await node.client.generate("x", max_tokens=4, model="nobody")
        with pytest.raises(tiermesh.DeadlineExceeded):
            await node.client.generate("x", max_tokens=200, deadline_s=0.003)
        assert (await node.client.generate("x", max_tokens=4)).token_ids


class Cable:
    """A TCP proxy that can be unplugged."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def plug(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{self.port}"

    async def unplug(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._pumps.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.split(":")
        there, back = await asyncio.open_connection(host, int(port))
        self._writers += [writer, back]
        self._pumps += [asyncio.create_task(self._pump(reader, back)), asyncio.create_task(self._pump(there, writer))]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)


async def test_a_cut_cable_is_missed_and_found_again(models: Path, worker: str) -> None:
    """Cut in the middle of an exact answer, and mended: the answer resumes, word for word."""
    cable = Cable(worker)
    degradable = replace(TENANT, quality=Quality.BOUNDED, degraded_allowed=True)
    async with edge(models / "stranger", await cable.plug(), degradable) as node, AsyncClient(worker) as direct:
        client: AsyncClient = node.client  # type: ignore[attr-defined]
        patient(node)
        expected = await direct.generate("dim the lights", max_tokens=120)
        send, sixth = node.upstream.link._send, asyncio.Event()
        frames: list[object] = []

        def counted(frame) -> None:
            frames.append(frame)
            if len(frames) == 6:
                sixth.set()
            send(frame)

        node.upstream.link._send = counted  # type: ignore[method-assign]
        task = asyncio.create_task(client.generate("dim the lights", max_tokens=120, quality="exact"))
        await sixth.wait()
        await cable.unplug()
        await until(lambda: not node.upstream.connected)
        degraded = await client.generate("dim the lights", max_tokens=8)
        assert all(span.degraded for span in degraded.spans)
        with pytest.raises(tiermesh.Unavailable):
            await client.generate("dim the lights", max_tokens=8, quality="exact")
        assert not task.done()
        await cable.plug()
        answer = await asyncio.wait_for(task, 20)
        assert (answer.token_ids, answer.text) == (expected.token_ids, expected.text)
        assert sum(isinstance(frame, Open) for frame in frames) == 2
        await node.upstream.link.wait_connected(5)
    await cable.unplug()


async def test_pace_learns_from_visits(models: Path, worker: str) -> None:
    async with edge(models / "twin", worker, EXACT) as node:
        assert Pace().travel_s.value is None
        for prompt in PROMPTS:
            await node.client.generate(prompt, max_tokens=40)
        assert 0 < node.pace.travel_s.value < 1
        assert 0 < node.pace.verify_s.value < 1
        assert node.pace.acceptance.get(0) > 0.8

"""An edge node as its clients see it, through the SDK: alone, and with no router to be heard."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import tiermesh
from tiermesh import AsyncClient, FinishReason, Origin, Quality, Retry, Tokens
from tiermesh.common.config import default_mesh
from tiermesh.common.config_types import EdgeConfig
from tiermesh.common.frames import Policy, TenantPolicy, TierPolicy
from tiermesh.common.inference_servicer import InferenceServicer
from tiermesh.common.keys import key_hash, salted_hash
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.types import Digests, ModelInfo
from tiermesh.edge.node import EdgeNode
from tiermesh.edge.service import EdgeService
from tiermesh.edge.tenants import Tenants

NOWHERE = "127.0.0.1:9"
"""The discard port: nothing listens there."""

SALT = bytes(range(16))


def known(key: str) -> str:
    """What a policy says of a key."""
    return salted_hash(SALT, key_hash(key))


TIERS = (TierPolicy("standard", 0.2, 30.0), TierPolicy("realtime", 0.05, 5.0), TierPolicy("batch", 1.0, 600.0))
POLICY = Policy(
    tenants=(
        TenantPolicy("demo", (known("demo-key"),), ("standard", "realtime"), Quality.EDGE, degraded_allowed=True),
        TenantPolicy("strict", (known("strict-key"),), ("standard",), Quality.BOUNDED),
    ),
    tiers=TIERS,
    valid_s=1000.0,
    salt=SALT,
)


@pytest.fixture(scope="module")
def edge_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_model

    root = tmp_path_factory.mktemp("edge_node")
    export_edge(write_random_model(root / "hf", hidden=64, max_length=256), root / "edge", bits=8)
    return root / "edge"


def config_of(edge_dir: Path, **changes: object) -> EdgeConfig:
    edge = replace(default_mesh({}).edge, model=edge_dir, listen="127.0.0.1:0", upstream=NOWHERE, metrics=None)
    return replace(edge, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(edge_dir: Path, policy: Policy | None = POLICY, **changes: object) -> AsyncIterator[EdgeService]:
    """A node in this process; `service.address` is where it listens."""
    node, server = EdgeNode.load(config_of(edge_dir, **changes)), RpcServer()
    if policy:
        node.tenants.replace(policy)
    async with channel(node.config.upstream) as upstream:
        service = EdgeService(node, upstream)
        server.add_inference(InferenceServicer(service))
        service.address = await server.start("127.0.0.1:0")  # type: ignore[attr-defined]
        try:
            yield service
        finally:
            await server.stop(0)
            node.close()


@pytest.fixture
async def service(edge_dir: Path) -> AsyncIterator[EdgeService]:
    async with serving(edge_dir) as service:
        yield service


def client_of(service: EdgeService, key: str = "demo-key") -> AsyncClient:
    return AsyncClient(service.address, api_key=key, retry=Retry(attempts=1))  # type: ignore[attr-defined]


@pytest.fixture
async def client(service: EdgeService) -> AsyncIterator[AsyncClient]:
    async with client_of(service) as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def test_an_answer_without_anybody_above(client: AsyncClient) -> None:
    answer = await client.generate("dim the lights", max_tokens=20, top_logprobs=2)
    assert answer.finish_reason is FinishReason.LENGTH
    assert [(span.origin, span.tokens, span.degraded) for span in answer.spans] == [(Origin.EDGE, 20, False)]
    assert (answer.tier, answer.quality, answer.usage.asks) == ("standard", Quality.EDGE, 0)
    assert answer.usage.prompt_tokens == await client.count_tokens("dim the lights")
    assert len(answer.logprobs) == 20
    assert all(value <= 0 for value in answer.logprobs)
    assert [top[0][0] for top in answer.top_logprobs] == list(answer.token_ids)
    assert {(t.hop, t.stage) for t in answer.timings} == {
        ("edge", stage) for stage in ("prefill", "decode", "decision", "relay")
    }


async def test_messages_and_ids_are_prompts_too(client: AsyncClient, service: EdgeService) -> None:
    messages = [{"role": "user", "content": "dim the lights"}]
    ids = service._node.text.encode_prompt((tiermesh.ChatMessage("user", "dim the lights"),))
    by_messages = await client.generate(messages, max_tokens=8, cache="bypass")
    by_ids = await client.generate(ids, max_tokens=8, cache="bypass")
    assert by_messages.token_ids == by_ids.token_ids


async def test_the_same_seed_gives_the_same_text(client: AsyncClient) -> None:
    async def sampled(seed: int) -> tuple[int, ...]:
        answer = await client.generate("x", max_tokens=24, temperature=1.0, seed=seed, cache="bypass")
        return answer.token_ids

    assert await sampled(7) == await sampled(7)
    assert await sampled(7) != await sampled(8)


async def test_stop_strings_cut_exactly(client: AsyncClient) -> None:
    whole = (await client.generate("dim the lights", max_tokens=40, cache="bypass")).text
    stop = next(whole[i : i + 3] for i in range(8, len(whole)) if whole.find(whole[i : i + 3]) == i)
    cut = await client.generate("dim the lights", max_tokens=40, stop=[stop])
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason is FinishReason.STOP


async def test_the_second_time_comes_from_the_cache(client: AsyncClient, service: EdgeService) -> None:
    first = await client.generate("again", max_tokens=12)
    second = await client.generate("again", max_tokens=12)
    other = await client.generate("again", max_tokens=12, stop=["zzz"])
    assert second.token_ids == first.token_ids
    assert second.text == first.text
    assert (second.usage.cached, second.usage.billed_tokens) == (True, 0)
    assert [span.origin for span in second.spans] == [Origin.CACHE]
    assert [answer.usage.cached for answer in (first, other)] == [False, False]
    unseeded = [await client.generate("again", max_tokens=12, temperature=1.0) for _ in range(2)]
    assert not any(answer.usage.cached for answer in unseeded)
    assert len(service._node.cache) == 2


async def test_tenants_do_not_share_the_cache(edge_dir: Path) -> None:
    two = tuple(replace(POLICY.tenants[0], name=n, key_hashes=(known(n),)) for n in ("one", "two"))
    async with (
        serving(edge_dir, replace(POLICY, tenants=two)) as service,
        client_of(service, "one") as one,
        client_of(service, "two") as other,
    ):
        await one.generate("secret", max_tokens=8)
        assert (await one.generate("secret", max_tokens=8)).usage.cached
        assert not (await other.generate("secret", max_tokens=8)).usage.cached


BAD = [
    ({"prompt": ""}, tiermesh.InvalidRequest, "prompt"),
    ({"prompt": "x" * 3000}, tiermesh.InvalidRequest, "context of 256"),
    ({"prompt": [3, 320]}, tiermesh.InvalidRequest, "320"),
    ({"max_tokens": 0}, tiermesh.InvalidRequest, "max_tokens"),
    ({"max_tokens": 2**31}, tiermesh.InvalidRequest, "max_tokens"),
    ({"temperature": float("nan")}, tiermesh.InvalidRequest, "temperature"),
    ({"temperature": float("inf")}, tiermesh.InvalidRequest, "temperature"),
    ({"tier": "gold"}, tiermesh.InvalidRequest, "gold"),
    ({"tier": "batch"}, tiermesh.Forbidden, "batch"),
    ({"stop_ids": [9999]}, tiermesh.InvalidRequest, "9999"),
    ({"delta": 7.0}, tiermesh.InvalidRequest, "delta"),
    ({"quality": "exact"}, tiermesh.Unavailable, "router"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD, ids=[str(sorted(o)) for o, _, _ in BAD])
async def test_bad_requests_are_told_why(
    client: AsyncClient, options: dict, error: type[tiermesh.TiermeshError], words: str
) -> None:
    given = {"prompt": "x", "max_tokens": 4} | options
    with pytest.raises(error, match=words):
        await client.generate(given.pop("prompt"), **given)
    assert (await client.generate("x", max_tokens=4)).token_ids


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_unknown_keys_are_refused(service: EdgeService, key: str) -> None:
    async with client_of(service, key) as stranger:
        with pytest.raises(tiermesh.Unauthenticated):
            await stranger.generate("x", max_tokens=4)
        with pytest.raises(tiermesh.Unauthenticated):
            await stranger.models()


async def test_without_a_policy_nobody_is_served(edge_dir: Path) -> None:
    async with serving(edge_dir, policy=None) as service, client_of(service) as client:
        with pytest.raises(tiermesh.Unavailable, match="has not heard from its router"):
            await client.generate("x", max_tokens=4)


async def test_what_must_be_asked_is_refused_offline(service: EdgeService) -> None:
    """The random artifact trusts nothing, and this tenant does not take degraded answers."""
    async with client_of(service, "strict-key") as strict:
        with pytest.raises(tiermesh.Unavailable) as refusal:
            await strict.generate("x", max_tokens=4)
        assert refusal.value.retry_after_s
        with pytest.raises(tiermesh.Unavailable):
            await strict.score("some text")
    await until(lambda: service._node.admission.running == 0)


@pytest.mark.parametrize("allowed", [True, False])
async def test_degraded_answers_need_tenant_and_operator(edge_dir: Path, allowed: bool) -> None:
    tenant = replace(POLICY.tenants[0], quality=Quality.BOUNDED)
    policy = replace(POLICY, tenants=(tenant,))
    async with serving(edge_dir, policy, degraded_allowed=allowed) as service, client_of(service) as client:
        if not allowed:
            with pytest.raises(tiermesh.Unavailable):
                await client.generate("x", max_tokens=4)
            return
        answer = await client.generate("x", max_tokens=20)
        assert all(span.degraded for span in answer.spans)
        assert not (await client.generate("x", max_tokens=20)).usage.cached, "degraded answers are not kept"


@pytest.fixture
async def slow(edge_dir: Path) -> AsyncIterator[EdgeService]:
    """A node whose model's thread is held up until `service.gate` is set."""
    async with serving(edge_dir, sessions=1) as service:
        gate = asyncio.Event()
        open_drafts = service._node.drafts

        def drafts(request, start):
            opened = open_drafts(request, start)

            async def wait():
                draft = await opened()
                unit = draft.unit

                async def held(known, room, doubt):
                    await gate.wait()
                    return await unit(known, room, doubt)

                draft.unit = held
                return draft

            return wait

        service._node.drafts = drafts  # type: ignore[method-assign]
        service.gate = gate  # type: ignore[attr-defined]
        yield service
        gate.set()


async def test_the_deadline_frees_the_place(slow: EdgeService) -> None:
    async with client_of(slow) as client:
        with pytest.raises(tiermesh.DeadlineExceeded):
            await client.generate("x", max_tokens=4, deadline_s=0.1)
        await until(lambda: slow._node.admission.running == 0)


async def test_a_client_that_goes_away_frees_the_place(slow: EdgeService) -> None:
    async with client_of(slow) as client:
        task = asyncio.create_task(client.generate("x", max_tokens=4))
        await until(lambda: slow._node.admission.running == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: slow._node.admission.running == 0)


async def test_cancel_ends_the_answer_with_its_reason(slow: EdgeService) -> None:
    async with client_of(slow) as client:
        task = asyncio.create_task(client.generate("x", max_tokens=4, request_id="mine"))
        await until(lambda: slow._node.admission.running == 1)
        with pytest.raises(tiermesh.RequestIdReused):
            await client.generate("y", max_tokens=4, request_id="mine")
        async with client_of(slow, "strict-key") as other:
            assert not await other.cancel("mine"), "ids belong to a tenant"
        assert await client.cancel("mine")
        assert (await task).finish_reason is FinishReason.CANCELLED
        assert not await client.cancel("mine")
        await until(lambda: slow._node.admission.running == 0)


async def test_a_full_queue_refuses_with_a_delay(slow: EdgeService) -> None:
    async with client_of(slow) as client:
        tasks = [asyncio.create_task(client.generate(f"{i}", max_tokens=4)) for i in range(9)]
        await until(lambda: slow._node.admission.full())
        with pytest.raises(tiermesh.Overloaded) as refusal:
            await client.generate("one too many", max_tokens=4)
        assert refusal.value.retry_after_s
        slow.gate.set()  # type: ignore[attr-defined]
        answers = await asyncio.gather(*tasks)
        assert all(len(answer.token_ids) == 4 for answer in answers)


async def test_a_draining_node_says_so(service: EdgeService, client: AsyncClient) -> None:
    service.draining = True
    with pytest.raises(tiermesh.Draining):
        await client.generate("x", max_tokens=4)


async def test_closing_the_stream_early_leaves_nothing_behind(service: EdgeService, client: AsyncClient) -> None:
    stream = client.stream("dim", max_tokens=200)
    async for event in stream:
        if isinstance(event, Tokens):
            break
    await stream.aclose()
    await until(lambda: not service._running and service._node.admission.running == 0)


async def test_metrics_count_what_happened(service: EdgeService, client: AsyncClient) -> None:
    await client.generate("count", max_tokens=20)
    with pytest.raises(tiermesh.InvalidRequest):
        await client.generate("", max_tokens=20)

    def value(name: str, **labels: str) -> float | None:
        return service._node.metrics.registry.get_sample_value(name, labels)

    assert value("tiermesh_edge_tokens_total", origin="edge") == 20
    assert value("tiermesh_edge_decisions_total", decision="alone") >= 2
    assert value("tiermesh_edge_requests_total", outcome="LENGTH") == 1
    assert value("tiermesh_edge_requests_total", outcome="INVALID_ARGUMENT") == 1
    assert value("tiermesh_edge_ttft_seconds_count") == 1
    assert value("tiermesh_edge_tpot_seconds_count") == 1
    assert value("tiermesh_edge_upstream_connected") == 0


async def test_a_foreign_pool_gets_nothing_but_text(service: EdgeService, client: AsyncClient) -> None:
    """Whoever may not leave stays; everybody else needs the pool, which is away."""
    service._node.upstream.models = (ModelInfo("other", Digests("x", "y", "z"), 1000, 50),)
    assert (await client.generate("x", max_tokens=4)).spans[0].origin is Origin.EDGE
    async with client_of(service, "strict-key") as strict:
        with pytest.raises(tiermesh.Unavailable):
            await strict.generate("x", max_tokens=4)
    with pytest.raises(tiermesh.ModelNotFound, match="there is other"):
        await client.generate("x", max_tokens=4, model="none")


PROBE = """
import sys
from tiermesh.edge.main import main
import tiermesh.edge.main as edge_main
heavy = {"torch", "transformers", "triton", "tiermesh.cloud", "tiermesh.router"}
async def noted(ready, server, original=edge_main._ready):
    await original(ready, server)
    print("heavy", sorted(heavy & set(sys.modules)), flush=True)
edge_main._ready = noted
sys.exit(main())
"""


async def test_the_process_starts_offline_without_torch_and_stops_gracefully(edge_dir: Path, tmp_path: Path) -> None:
    Tenants(tmp_path).replace(POLICY)
    options = {"--model": edge_dir, "--upstream": NOWHERE, "--state-dir": tmp_path, "--threads": 1}
    options |= {"--listen": "127.0.0.1:0", "--metrics": "127.0.0.1:0"}
    words = [str(word) for pair in options.items() for word in pair]
    process = subprocess.Popen(  # noqa: ASYNC220 - the test waits for its first line anyway
        [sys.executable, "-P", "-c", PROBE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(3)]
        address = next(line.split()[1] for line in lines if line.startswith("listening "))
        assert "heavy []\n" in lines
        async with grpc.aio.insecure_channel(address) as plain:
            health = await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        async with AsyncClient(address, api_key="demo-key") as client:
            assert len((await client.generate("x", max_tokens=12)).token_ids) == 12
        process.send_signal(signal.SIGTERM)
        _, stderr = await asyncio.to_thread(process.communicate, timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr
    events = [json.loads(line) for line in stderr.splitlines()]
    assert "policy_restored" in {event["event"] for event in events}
    assert "demo-key" not in stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"--model": "/nonexistent"}, "no edge directory"), ({"--listen": "0.0.0.0:0"}, "insecure")],
)
def test_a_node_that_cannot_start_says_why(edge_dir: Path, changes: dict[str, str], words: str) -> None:
    options = {"--model": str(edge_dir), "--listen": "127.0.0.1:0", "--metrics": "127.0.0.1:0"} | changes
    arguments = [word for pair in options.items() for word in pair]
    command = [sys.executable, "-P", "-m", "tiermesh.edge.main", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


async def test_drafts_from_an_inner_exit_are_counted(tmp_path: Path) -> None:
    from tiermesh.edge.artifact import ExitPoint
    from tiermesh.edge.exits import Costs, Exits
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_exit, write_random_model

    curve = (ExitPoint(0.0, 1.0, 0.9),)
    model = write_random_model(tmp_path / "hf", layers=3, hidden=64, max_length=256)
    export_edge(write_random_exit(model, 1, curve), tmp_path / "edge")
    async with serving(tmp_path / "edge") as service, client_of(service) as client:
        node = service._node
        registry = node.metrics.registry
        measured = registry.get_sample_value("tiermesh_edge_inner_exit_on", {"sampling": "greedy"})
        assert measured == float(node._exits.greedy.on), "what was measured at start is shown before any request"
        # Whether drafts pay for so small a model is the machine's affair; with these costs they do.
        node._exits = Exits(Costs(shallow_s=1e-4, deep_s=1.0, row_s=1e-4), curve)
        answer = await client.generate("dim the lights", max_tokens=40)
        assert len(answer.token_ids) == 40
        counts = [
            registry.get_sample_value("tiermesh_edge_inner_drafts_total", {"sampling": "greedy", "outcome": outcome})
            for outcome in ("accepted", "refused")
        ]
        assert sum(counts) > 5
        assert registry.get_sample_value("tiermesh_edge_inner_exit_on", {"sampling": "greedy"}) == 1
        assert (
            registry.get_sample_value("tiermesh_edge_inner_drafts_total", {"sampling": "sampled", "outcome": "refused"})
            == 0
        )

"""The router as a process: ready line, health, metrics, reload, drain, and what it says when it can't start."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tiermesh.common import wire, wire_events
from tiermesh.common.errors import Draining, Unavailable
from tiermesh.common.frames import Hello, Open, SessionMode
from tiermesh.common.keys import key_hash
from tiermesh.common.relay_link import RelayLink
from tiermesh.common.rpc import channel
from tiermesh.common.types import Finished, Request
from tiermesh.v1 import inference_pb2_grpc


@dataclass
class Process:
    """A router process and where it listens."""

    process: asyncio.subprocess.Process
    address: str
    metrics: str

    async def health(self) -> int:
        async with channel(self.address) as chan:
            reply = await health_pb2_grpc.HealthStub(chan).Check(health_pb2.HealthCheckRequest())
            return reply.status

    async def get(self, path: str) -> tuple[int, str]:
        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://{self.metrics}{path}", timeout=5) as reply:
                    return reply.status, reply.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return await asyncio.to_thread(fetch)

    async def said(self, event: str) -> dict[str, Any]:
        """The next line of the log with this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(10):
            while line := await self.process.stderr.readline():
                if (facts := json.loads(line))["event"] == event:
                    return facts  # type: ignore[no-any-return]
        raise AssertionError("the process ended")


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
def start_process(stack: AsyncExitStack, tmp_path: Path) -> Start:
    """Starts a router process and waits for its ready line."""

    async def start(*arguments: str) -> Process:
        process = await run(tmp_path, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *arguments)
        stack.push_async_callback(end, process)
        assert process.stdout is not None
        said = dict([(await process.stdout.readline()).decode().split() for _ in range(2)])
        return Process(process, said["listening"], said["metrics"])

    return start


async def run(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "tiermesh.router.main", *arguments, stdout=pipe, stderr=pipe, cwd=folder
    )


async def end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await check():  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(0.02)


async def test_a_router_lives_reloads_and_drains(
    toy: Any, start_worker: Any, start_process: Start, tmp_path: Path
) -> None:
    worker = await start_worker(stop_before=2)
    config = tmp_path / "mesh.yaml"
    text = f'tenants: {{demo: {{api_keys: ["{key_hash("first")}"]}}}}\nrouter: {{workers: ["{worker.address}"]}}\n'
    config.write_text(text)
    router = await start_process("--config", str(config))

    async def serving() -> bool:
        return await router.health() == health_pb2.HealthCheckResponse.SERVING

    await eventually(serving)
    assert (await router.get("/readyz"))[0] == 200
    assert f'tiermesh_router_worker_up{{worker="{worker.address}"}} 1.0' in (await router.get("/metrics"))[1]

    async with channel(router.address) as chan:
        stub = inference_pb2_grpc.InferenceServiceStub(chan)

        async def models(key: str) -> bool:
            metadata = [("authorization", f"Bearer {key}")]
            with suppress(Exception):
                await stub.ListModels(wire.ipb.ListModelsRequest(), metadata=metadata)
                return True
            return False

        assert await models("first")
        config.write_text(text.replace("tenants", "tenantz"))
        router.process.send_signal(signal.SIGHUP)
        assert router.process.stderr is not None
        while b"config_kept" not in (line := await router.process.stderr.readline()):
            assert line, "the process ended"
        assert b"mesh.yaml:1: tenantz: unknown key" in line
        assert await models("first")
        config.write_text(text.replace(key_hash("first"), key_hash("second")))
        router.process.send_signal(signal.SIGHUP)
        await eventually(lambda: models("second"))
        assert not await models("first")

        call = stub.Generate(wire.request_to(Request("x", 6)), metadata=[("authorization", "Bearer second")])
        await toy.until(lambda: worker.running == 1)
        router.process.send_signal(signal.SIGTERM)

        async def drains() -> bool:
            return (await router.get("/readyz"))[0] == 503

        await eventually(drains)
        worker.gate.set()
        events = [wire_events.event_from(message) async for message in call]
        assert sum(len(event.ids) for event in events[1:-1]) == 6
    assert await router.process.wait() == 0


@pytest.fixture
async def loaded(toy: Any, start_worker: Any, start_process: Start, tmp_path: Path, stack: AsyncExitStack) -> Any:
    """A router with a queue: of thirty requests the worker, which holds them back, has five."""
    worker, config = await start_worker(slots=4, stop_before=1), tmp_path / "mesh.yaml"

    async def start(drain_ms: int) -> tuple[Process, Any, list[asyncio.Task[Any]], Any]:
        router = {"workers": [worker.address], "drain_ms": drain_ms}
        tenants = {"demo": {"api_keys": [key_hash("demo-key")], "limits": {"concurrent": 100}}}
        config.write_text(json.dumps({"router": router, "tenants": tenants}))
        process = await start_process("--config", str(config))
        chan = await stack.enter_async_context(channel(process.address))
        client = toy.Client(inference_pb2_grpc.InferenceServiceStub(chan))

        async def ready() -> bool:
            return (await process.get("/readyz"))[0] == 200

        async def queued() -> bool:
            return 'tiermesh_router_queue_length{tier="standard"} 25.0' in (await process.get("/metrics"))[1]

        await eventually(ready)
        tasks = [asyncio.create_task(client.events(Request(f"prompt {i}", 6))) for i in range(30)]
        await eventually(queued)
        return process, worker, tasks, client

    return start


async def test_what_was_taken_ends_when_the_router_is_told_to_stop(loaded: Any) -> None:
    process, worker, tasks, client = await loaded(drain_ms=10_000)
    process.process.send_signal(signal.SIGTERM)
    assert (await process.said("draining"))["running"] == 30
    with pytest.raises(Draining) as refusal:
        await client.events(Request("new", 6))
    assert refusal.value.retry_after_s
    assert isinstance(refusal.value, Unavailable), "clients try elsewhere"
    assert await process.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    worker.gate.set()
    for task in tasks:
        assert isinstance((await task)[-1], Finished)
    assert (await process.said("drained"))["cut_short"] == 0
    assert await process.process.wait() == 0


async def test_what_does_not_end_in_time_is_told_so(loaded: Any) -> None:
    process, _, tasks, _ = await loaded(drain_ms=300)
    link = RelayLink(process.address, Hello("shop"))
    running = asyncio.create_task(link.run())
    assert await link.wait_connected(5)
    session = link.session()
    session.open(Open(0, 0, Request("of a node", 6, tier="standard"), SessionMode.VERIFY, tenant="demo"))

    async def open_there() -> bool:
        return 'tiermesh_router_node_sessions{node="shop"} 1.0' in (await process.get("/metrics"))[1]

    await eventually(open_there)
    begun = time.monotonic()
    process.process.send_signal(signal.SIGTERM)
    assert (await process.said("drained"))["cut_short"] == 31
    for task in tasks:
        with pytest.raises(Draining, match="stopped before the answer was complete"):
            await task
    with pytest.raises(Unavailable, match=r"the stream to .* broke") as broken:
        await session.receive()
    assert type(broken.value) is Unavailable, "an edge node takes that for an outage and resumes"
    assert await process.process.wait() == 0
    assert time.monotonic() - begun < 0.3 + 5.0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_broken_configurations_under_load_change_nothing(loaded: Any, tmp_path: Path) -> None:
    process, worker, tasks, client = await loaded(drain_ms=10_000)
    config, good = tmp_path / "mesh.yaml", (tmp_path / "mesh.yaml").read_text()
    broken = {
        good[: len(good) // 2].encode(): "no valid YAML",
        b"": "says nothing",
        b"# nothing but this\n": "says nothing",
        b"\xff\xfe\x00": "not UTF-8",
        b"[" * 5000: "nested deeper",
        good.replace(key_hash("demo-key"), "demo-key").encode(): "never the key itself",
        good.replace("drain_ms", "drain").encode(): "unknown key",
    }
    for content, why in broken.items():
        config.write_bytes(content)
        process.process.send_signal(signal.SIGHUP)
        assert why in (kept := await process.said("config_kept"))["detail"]
        assert "demo-key" not in json.dumps(kept)
    config.unlink()
    process.process.send_signal(signal.SIGHUP)
    assert "can't read the configuration" in (await process.said("config_kept"))["detail"]
    assert not any(task.done() for task in tasks)
    worker.gate.set()
    for task in tasks:
        assert isinstance((await task)[-1], Finished)
    config.write_text(good.replace('"concurrent": 100', '"concurrent": 99'))
    process.process.send_signal(signal.SIGHUP)
    await process.said("config_reloaded")
    assert isinstance((await client.events(Request("afterwards", 6)))[-1], Finished)


async def test_a_router_without_workers_is_not_ready(start_process: Start) -> None:
    router = await start_process("--worker", "127.0.0.1:1")
    assert await router.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await router.get("/readyz"))[0] == 503
    assert (await router.get("/healthz"))[0] == 200
    router.process.send_signal(signal.SIGINT)
    assert await router.process.wait() == 0


async def test_a_port_in_use_is_told(start_worker: Any, tmp_path: Path) -> None:
    worker = await start_worker()
    process = await run(tmp_path, "--listen", worker.address, "--metrics", "127.0.0.1:0")
    _, told = await process.communicate()
    assert f"router: can't listen on {worker.address}" in told.decode()
    assert "Traceback" not in told.decode()
    assert process.returncode == 1

"""The router under load, when thousands give up at once, and when somebody sets the clock."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tiermesh.cloud.loading import load_worker
from tiermesh.cloud.loads import Loads
from tiermesh.cloud.relay import WorkerPeer
from tiermesh.cloud.service import Worker
from tiermesh.common.config import default_mesh
from tiermesh.common.errors import DeadlineExceeded, Overloaded, QuotaExceeded
from tiermesh.common.relay_server import RelayServicer
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.types import CacheControl, Finished, FinishReason, Request, Tokens
from tiermesh.v1 import inference_pb2 as pb
from tiermesh.v1 import inference_pb2_grpc

DAY_S = 86400.0
WIDE = {"concurrent": 5000, "queued": 5000, "requests_per_minute": 10**6, "tokens_per_minute": 10**8}


@pytest.fixture
async def engine(tmp_path: Path, stack: Any) -> tuple[Worker, str]:
    """A real worker with a small model, in this process, and its address."""
    from tiermesh.training.random_model import write_random_model

    model = write_random_model(tmp_path / "model")
    worker, server = (
        load_worker(replace(default_mesh({}).cloud, model=model, device="cpu", threads=1, slots=8)),
        RpcServer(),
    )
    loads = Loads(worker.engine)
    server.add_relay(RelayServicer(partial(WorkerPeer.connect, worker, loads)))
    address = await server.start("127.0.0.1:0")
    worker.engine.start(asyncio.get_running_loop())
    telling = asyncio.create_task(loads.run())
    stack.callback(worker.engine.stop)
    stack.callback(telling.cancel)
    stack.push_async_callback(server.stop, 0)
    return worker, address


class Stopped:
    """A clock that stands still."""

    def __init__(self, at: float) -> None:
        self._at = at

    def now(self) -> float:
        return self._at


def ids_of(events: list[Any]) -> tuple[int, ...]:
    return tuple(i for event in events if isinstance(event, Tokens) for i in event.ids)


@pytest.mark.slow
async def test_two_thousand_cancels_at_once_leave_nothing_behind(
    toy: Any, engine: tuple[Worker, str], start_router: Any
) -> None:
    """Half of them close their streams, half say Cancel; some run, most wait. Another tenant's answers stand."""
    worker, address = engine
    pool = worker.engine._scheduler.pool
    tenants = (toy.tenant("demo", **WIDE | {"concurrent": 4}), toy.tenant("acme", **WIDE))
    # So that none is refused when it comes, however fast.
    patient = tuple(replace(tier, ttft_s=DAY_S, deadline_s=DAY_S) for tier in default_mesh({}).tiers)
    router = await start_router(address, tenants=tenants, tiers=patient, queued=5000)
    parts = router.service._core.parts
    asked = [Request(f"acme {i}", 100, cache=CacheControl.BYPASS) for i in range(4)]
    alone = [ids_of(await router.client.events(one, "acme-key")) for one in asked]
    scheduler = parts.slots.scheduler
    parts.limits._clock = Stopped(parts.clock.now())  # nothing is forgotten: what is used is what was billed

    others = [asyncio.create_task(router.client.events(one, "acme-key", 60.0)) for one in asked]
    await toy.until(lambda: scheduler.running == 4)
    burst = [Request(f"demo {i}", 30, cache=CacheControl.BYPASS, tier="batch", request_id=f"r{i}") for i in range(2000)]
    tasks = [asyncio.create_task(router.client.events(one, timeout_s=DAY_S)) for one in burst]
    await toy.until(lambda: router.service._answers.running + sum(task.done() for task in tasks) >= 2000, 30.0)
    assert scheduler.queued("batch") > 1000
    async with channel(router.address) as chan:
        stub = inference_pb2_grpc.InferenceServiceStub(chan)
        metadata = [("authorization", "Bearer demo-key")]
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(
            *(stub.Cancel(pb.CancelRequest(request_id=one.request_id), metadata=metadata) for one in burst[1::2])
        )
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    said = [one[-1].reason for one in ended if not isinstance(one, BaseException)]
    cancelled = said.count(FinishReason.CANCELLED)
    assert 300 < cancelled <= 1000
    left = sum(isinstance(one, asyncio.CancelledError) for one in ended)
    refused = sum(isinstance(one, Overloaded) for one in ended)
    assert (left > 300, left + refused + len(said)) == (True, 2000), "all others had the whole answer"
    assert [ids_of(await task) for task in others] == alone
    await toy.until(lambda: router.service.busy == 0)
    await toy.until(lambda: not worker.engine.busy and pool.free == pool.total)
    assert len(router.service._answers._flights) == 0
    assert all(one.in_flight == 0 for one in parts.registry.workers)
    used = parts.limits.used(router.mesh.tenants[0])
    assert used["tokens_per_minute"] < 1000 * 40, "what did not run is not billed; two thousand cost 37 each"
    assert isinstance((await router.client.events(burst[0]))[-1], Finished)


@pytest.mark.parametrize("jump_s", [-40 * 365 * 86400.0, 40 * 365 * 86400.0], ids=["back", "forward"])
async def test_a_wall_clock_that_jumps_changes_no_deadline_and_no_limit(
    toy: Any, start_worker: Any, start_router: Any, jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start_worker(slots=2, stop_before=1)
    router = await start_router(worker, tenants=(toy.tenant("demo"), toy.tenant("small", requests_per_minute=1)))
    await router.client.events(Request("the only one", 1), "small-key")
    late = asyncio.create_task(router.client.events(Request("late", 6, deadline_s=1.0)))
    begun = time.monotonic()
    tasks = [asyncio.create_task(router.client.events(Request(f"prompt {i}", 6))) for i in range(9)]
    await toy.until(lambda: router.running == 3 and router.sample("queue_length", tier="standard") == 7)
    jumped = time.time() + jump_s  # from here on clients set no deadline in their calls: grpc's own is an absolute time
    monkeypatch.setattr(time, "time", lambda: jumped)
    with pytest.raises(QuotaExceeded):
        await router.client.events(Request("one too many", 1), "small-key", None)
    with pytest.raises(DeadlineExceeded):
        await late
    assert 0.9 < time.monotonic() - begun < 5.0
    assert not any(task.done() for task in tasks)
    worker.gate.set()
    for task in tasks:
        assert isinstance((await task)[-1], Finished)
    assert isinstance((await router.client.events(Request("afterwards", 6), timeout_s=None))[-1], Finished)
    await toy.until(lambda: router.running == 0)

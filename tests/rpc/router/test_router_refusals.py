"""What the router refuses, each with a reason, and that it lives on afterwards."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from tiermesh.common.config import default_mesh
from tiermesh.common.errors import (
    DeadlineExceeded,
    Draining,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NoWorkers,
    Overloaded,
    QuotaExceeded,
    RequestIdReused,
    Unauthenticated,
)
from tiermesh.common.rpc import channel
from tiermesh.common.rpc_errors import from_rpc_error
from tiermesh.common.types import CacheControl, ChatMessage, Finished, Quality, Request, Sampling, Started
from tiermesh.v1 import inference_pb2 as pb
from tiermesh.v1 import inference_pb2_grpc

GREETING = Request("hello", 4)


@pytest.mark.parametrize(
    ("key", "words"), [(None, "no API key"), ("", "no API key"), ("wrong", "not known"), ("demo-key ", None)]
)
async def test_keys_open_the_door(start_worker: Any, start_router: Any, key: str | None, words: str | None) -> None:
    router = await start_router(await start_worker())
    if words is None:
        assert await router.client.events(GREETING, key)
        return
    with pytest.raises(Unauthenticated, match=words):
        await router.client.events(GREETING, key)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"tier": "warp"}, InvalidRequest, "tier: there is no tier 'warp'; there are realtime"),
        ({"tier": "batch"}, Forbidden, "may use standard, realtime"),
        ({"prompt": ""}, InvalidRequest, "prompt"),
        ({"prompt": (ChatMessage("user", ""),), "max_tokens": 0}, InvalidRequest, "max_tokens"),
        ({"max_tokens": 0}, InvalidRequest, "max_tokens: must be from 1"),
        ({"max_tokens": 257}, InvalidRequest, "max_tokens: must be from 1 to 256"),
        ({"max_tokens": 2**31}, InvalidRequest, "max_tokens"),
        ({"prompt": (5,) * 250, "max_tokens": 7}, InvalidRequest, "pass the context of 256"),
        ({"prompt": (5,) * 300}, InvalidRequest, "prompt.token_ids"),
        ({"prompt": (5, 1000)}, InvalidRequest, "id 1000 is outside the vocabulary"),
        ({"sampling": Sampling(temperature=float("nan"))}, InvalidRequest, "sampling.temperature"),
        ({"sampling": Sampling(temperature=1.0, top_p=1.5)}, InvalidRequest, "sampling.top_p"),
        ({"stop": ("x" * 300,)}, InvalidRequest, "stop"),
        ({"stop_ids": (2000,)}, InvalidRequest, "stop_ids"),
        ({"delta": float("inf")}, InvalidRequest, "delta"),
        ({"model": "other"}, ModelNotFound, "there is toy"),
    ],
)
async def test_a_bad_request_is_refused_and_the_next_one_answered(
    toy: Any, start_worker: Any, start_router: Any, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    worker = await start_worker()
    router = await start_router(worker, tenants=(toy.tenant("demo", tiers=("standard", "realtime")),))
    with pytest.raises(error, match=words.replace("[", r"\[")):
        await router.client.events(replace(GREETING, **changes))
    assert not worker.opens
    assert isinstance((await router.client.events(GREETING))[-1], Finished)


async def test_a_message_over_the_size_limit_is_refused(start_worker: Any, start_router: Any) -> None:
    router = await start_router(await start_worker())
    with pytest.raises(InvalidRequest, match="limit of"):
        await router.client.events(replace(GREETING, prompt="x" * (17 * 2**20)))
    assert await router.client.events(GREETING)


async def test_a_deadline_that_passed_or_passes_ends_the_work(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(stop_before=2)
    router = await start_router(worker)
    with pytest.raises(DeadlineExceeded):
        await router.client.events(replace(GREETING, deadline_s=0.1))
    await toy.until(lambda: worker.running == 0 and router.running == 0)
    with pytest.raises(DeadlineExceeded):
        await router.client.events(GREETING, timeout_s=0.1)
    await toy.until(lambda: worker.running == 0 and router.running == 0)


async def test_the_tier_bounds_the_deadline(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(stop_before=2)
    tiers = tuple(replace(tier, deadline_s=0.15) for tier in default_mesh({}).tiers)
    router = await start_router(worker, tiers=tiers)
    with pytest.raises(DeadlineExceeded):
        await router.client.events(replace(GREETING, deadline_s=5.0))
    await toy.until(lambda: worker.running == 0)


async def test_without_workers_a_request_is_refused_after_a_short_grace(start_router: Any) -> None:
    router = await start_router("127.0.0.1:1", wait=False)
    with pytest.raises(NoWorkers) as caught:
        await router.client.events(replace(GREETING, deadline_s=0.2))
    assert caught.value.retry_after_s
    assert not router.service.ready


async def test_requests_that_wait_are_refused_when_the_workers_go_for_good(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    worker = await start_worker(slots=1, stop_before=0)
    router = await start_router(worker)
    waiting = [asyncio.create_task(router.client.events(replace(GREETING, prompt=f"p{i}"))) for i in range(5)]
    await toy.until(lambda: router.sample("queue_length", tier="standard") == 3)
    await worker.kill()
    for task in waiting:
        with pytest.raises(NoWorkers):
            await task
    await toy.until(lambda: router.running == 0)


async def test_a_full_queue_refuses_with_a_delay(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(slots=1, stop_before=1)
    router = await start_router(worker, tenants=(toy.tenant("demo", queued=2),))
    requests = [replace(GREETING, prompt=f"p{i}") for i in range(4)]
    tasks = [asyncio.create_task(router.client.events(request)) for request in requests]
    await toy.until(lambda: router.running == 2 and router.sample("queue_length", tier="standard") == 2)
    with pytest.raises(Overloaded) as caught:
        await router.client.events(replace(GREETING, prompt="one more"))
    assert caught.value.retry_after_s
    worker.gate.set()
    for task in tasks:
        assert isinstance((await task)[-1], Finished)


async def test_concurrency_of_a_tenant_is_bounded(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(slots=8, stop_before=1)
    router = await start_router(worker, tenants=(toy.tenant("demo"), toy.tenant("acme", concurrent=2)))
    tasks = [asyncio.create_task(router.client.events(replace(GREETING, prompt=f"p{i}"), "acme-key")) for i in range(4)]
    await toy.until(lambda: router.running == 2 and router.sample("queue_length", tier="standard") == 2)
    worker.gate.set()
    for task in tasks:
        await task
    assert max(len({o.request.request_id for o in worker.opens}), 0) == 4


async def test_quotas_of_one_tenant_leave_the_others_alone(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker()
    router = await start_router(
        worker,
        tenants=(
            toy.tenant("demo"),
            toy.tenant("small", requests_per_minute=2),
            toy.tenant("poor", tokens_per_minute=30),
        ),
    )
    for i in range(2):
        await router.client.events(replace(GREETING, prompt=f"p{i}"), "small-key")
    with pytest.raises(QuotaExceeded, match="requests_per_minute") as caught:
        await router.client.events(GREETING, "small-key")
    assert caught.value.retry_after_s is not None
    assert [v.field for v in caught.value.violations] == ["requests_per_minute"]
    await router.client.events(replace(GREETING, max_tokens=20), "poor-key")
    with pytest.raises(QuotaExceeded, match="tokens_per_minute"):
        await router.client.events(replace(GREETING, prompt="again", max_tokens=20), "poor-key")
    assert await router.client.events(GREETING)


async def test_a_request_id_means_one_request(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(stop_before=1)
    router = await start_router(worker)
    request = replace(GREETING, request_id="abc", sampling=Sampling(temperature=1.0))
    first = asyncio.create_task(router.client.events(request))
    await toy.until(lambda: worker.running == 1)
    second = asyncio.create_task(router.client.events(request))
    with pytest.raises(RequestIdReused):
        await router.client.events(replace(request, prompt="other"))
    await toy.until(lambda: len(router.service._answers._running[("demo", "abc")].readers) == 2)
    worker.gate.set()
    assert (await first)[1:-1] == (await second)[1:-1]
    assert len(worker.opens) == 1


async def test_qualities_and_bypass_are_honoured(start_worker: Any, start_router: Any) -> None:
    worker = await start_worker()
    router = await start_router(worker)
    for _ in range(2):
        events = await router.client.events(replace(GREETING, cache=CacheControl.BYPASS, quality=Quality.EDGE))
        assert isinstance(events[0], Started)
        assert events[0].quality is Quality.EXACT
    assert len(worker.opens) == 2
    assert worker.opens[0].request.quality is Quality.BOUNDED


async def test_other_methods_ask_for_a_key_too(start_worker: Any, start_router: Any) -> None:
    router = await start_router(await start_worker())
    async with channel(router.address) as chan:
        stub = inference_pb2_grpc.InferenceServiceStub(chan)
        calls = [
            stub.Score(pb.ScoreRequest()),
            stub.CountTokens(pb.CountTokensRequest()),
            stub.ListModels(pb.ListModelsRequest()),
            stub.Cancel(pb.CancelRequest(request_id="x")),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                await call
            assert isinstance(from_rpc_error(caught.value), Unauthenticated)
        metadata = [("authorization", "Bearer demo-key")]
        models = await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        assert [model.id for model in models.models] == ["toy"]


async def test_a_draining_router_refuses_what_is_new_and_finishes_what_runs(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    worker = await start_worker(stop_before=1)
    router = await start_router(worker)
    running = asyncio.create_task(router.client.events(GREETING))
    await toy.until(lambda: worker.running == 1)
    router.service.drain()
    with pytest.raises(Draining):
        await router.client.events(replace(GREETING, prompt="new"))
    worker.gate.set()
    assert isinstance((await running)[-1], Finished)

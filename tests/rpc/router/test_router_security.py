"""What one tenant can learn of another, what clients can make the router believe, and what they can make it write."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import grpc
import pytest

from tiermesh.common import wire
from tiermesh.common.config import NodeConfig
from tiermesh.common.errors import (
    DeadlineExceeded,
    Forbidden,
    ModelNotFound,
    Overloaded,
    QuotaExceeded,
    RequestTooLarge,
    TiermeshError,
    Unauthenticated,
)
from tiermesh.common.frames import Hello
from tiermesh.common.keys import key_hash
from tiermesh.common.rpc import channel
from tiermesh.common.rpc_errors import from_rpc_error
from tiermesh.common.types import Finished, Request, Sampling, Started
from tiermesh.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from tiermesh.v1 import inference_pb2 as pb

ASKED = Request("hello", 6)
SECOND = "acme-key"
CLAIMS = [
    *("x-tenant", "x-tiermesh-tenant", "tiermesh-tenant", "tenant", "x-tenant-id", "x-user", "x-forwarded-user"),
    *("x-tier", "tier", "x-tiermesh-tier", "x-priority", "priority", "x-quality", "x-weight", "x-request-id"),
    *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-client-cert", "forwarded", "x-real-ip"),
    *("x-api-key", "api-key", "proxy-authorization", "cookie", "x-ssl-client-subject", "x-tiermesh-node", "x-node"),
    *("x-admin", "x-operator", "x-worker-token", "x-tiermesh-attempt", "grpc-previous-rpc-attempts"),
]


@pytest.fixture
async def mesh(toy: Any, start_worker: Any, start_router: Any) -> Any:
    """A worker that holds answers back, and a router with two tenants."""
    worker = await start_worker(stop_before=2)
    tenants = (toy.tenant("demo"), toy.tenant("acme", requests_per_minute=50, queued=1, concurrent=1))
    return worker, await start_router(worker, tenants=tenants, admin_keys=(key_hash("operator-key"),))


async def reply(call: Any) -> tuple[Any, ...]:
    """All that a caller can see of a unary call."""
    try:
        message = (await call).SerializeToString()
    except grpc.RpcError:
        message = None
    return message, await call.code(), await call.details(), tuple(await call.trailing_metadata())


async def test_another_tenants_request_can_not_be_cancelled_or_told_from_none(toy: Any, mesh: Any) -> None:
    worker, router = mesh
    running = asyncio.create_task(router.client.events(replace(ASKED, request_id="mine")))
    await toy.until(lambda: worker.running == 1)
    async with channel(router.address) as chan:
        stub = inference_pb2_grpc.InferenceServiceStub(chan)

        async def cancel(request_id: str, key: str) -> tuple[Any, ...]:
            metadata = [("authorization", f"Bearer {key}")]
            return await reply(stub.Cancel(pb.CancelRequest(request_id=request_id), metadata=metadata))

        assert await cancel("mine", SECOND) == await cancel("nobody's", SECOND) == await cancel("", SECOND)
        assert (await cancel("mine", "wrong"))[1] is grpc.StatusCode.UNAUTHENTICATED
        worker.gate.set()
        assert (await running)[-1].reason.value == "stop"


async def test_a_request_id_of_another_tenant_is_no_way_to_its_answer(toy: Any, mesh: Any) -> None:
    """The same body does not attach to it, and another body is not refused for it."""
    worker, router = mesh
    asked = replace(ASKED, request_id="mine", sampling=Sampling(temperature=1.0))
    first = asyncio.create_task(router.client.events(asked))
    await toy.until(lambda: worker.running == 1)
    second = asyncio.create_task(router.client.events(asked, SECOND))
    await toy.until(lambda: len(worker.opens) == 2)
    assert worker.opens[0].request.sampling.seed != worker.opens[1].request.sampling.seed
    assert [opening.tenant for opening in worker.opens] == ["demo", "acme"]
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await toy.until(lambda: worker.running == 1)
    third = asyncio.create_task(router.client.events(replace(asked, prompt="another"), SECOND))
    await toy.until(lambda: len(worker.opens) == 3)
    worker.gate.set()
    assert [isinstance((await task)[-1], Finished) for task in (first, third)] == [True, True]


async def test_ids_that_the_router_draws_can_not_be_guessed(mesh: Any) -> None:
    worker, router = mesh
    worker.gate.set()
    begun = [(await router.client.events(replace(ASKED, prompt=f"p{i}")))[0] for i in range(40)]
    drawn = {event.request_id for event in begun if isinstance(event, Started)}
    assert len(drawn) == 40
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in drawn), "64 random bits"
    assert len({one[:2] for one in drawn}) > 20, "none follows from the others"


async def test_what_one_tenant_asked_is_neither_shared_nor_quicker_for_another(toy: Any, mesh: Any) -> None:
    worker, router = mesh
    first = asyncio.create_task(router.client.events(ASKED))
    await toy.until(lambda: worker.running == 1)
    second = asyncio.create_task(router.client.events(ASKED, SECOND))
    await toy.until(lambda: worker.running == 2)  # it did not join the first, which is under way
    worker.gate.set()
    await asyncio.gather(first, second)
    await router.client.events(replace(ASKED, prompt="known to demo"))
    again = await router.client.events(replace(ASKED, prompt="known to demo"), SECOND)
    assert not again[-1].usage.cached
    assert [opening.tenant for opening in worker.opens] == ["demo", "acme", "demo", "acme"]
    own = await router.client.events(replace(ASKED, prompt="known to demo"), SECOND)
    assert own[-1].usage.cached


async def test_errors_limits_and_lists_speak_of_the_callers_own(toy: Any, mesh: Any) -> None:
    """Both of acme's places are taken and its minute is used up; demo notices nothing and is told nothing."""
    worker, router = mesh
    idle = router.service.models()
    held = [asyncio.create_task(router.client.events(replace(ASKED, prompt=f"p{i}"), SECOND)) for i in range(2)]
    await toy.until(lambda: worker.running == 1 and router.sample("queue_length", tier="standard") == 1)
    with pytest.raises(Overloaded) as full:
        await router.client.events(replace(ASKED, prompt="one more"), SECOND)
    used_up: TiermeshError = full.value
    for i in range(60):
        with pytest.raises(TiermeshError) as refused:
            await router.client.events(replace(ASKED, prompt=f"more {i}"), SECOND)
        used_up = refused.value
    assert isinstance(used_up, QuotaExceeded)
    told: list[TiermeshError] = []
    for changes in ({"tier": "warp"}, {"model": "other"}, {"deadline_s": 0.05}, {"max_tokens": 9999}):
        with pytest.raises(TiermeshError) as caught:
            await router.client.events(replace(ASKED, prompt="demo's", **changes))
        told.append(caught.value)
    assert isinstance(told[2], DeadlineExceeded)
    assert not any("acme" in error.message for error in told)
    assert not any("demo" in error.message for error in (full.value, used_up))
    assert router.service.models() == idle
    async with channel(router.address) as chan:
        stub = inference_pb2_grpc.InferenceServiceStub(chan)
        lists = [
            await reply(stub.ListModels(pb.ListModelsRequest(), metadata=[("authorization", f"Bearer {key}")]))
            for key in ("demo-key", SECOND)
        ]
        assert lists[0] == lists[1]
        admin = admin_pb2_grpc.AdminServiceStub(chan)
        for key in ("demo-key", SECOND):
            metadata = [("authorization", f"Bearer {key}")]
            stats = await reply(admin.GetCacheStats(admin_pb2.GetCacheStatsRequest(), metadata=metadata))
            assert (stats[0], stats[1]) == (None, grpc.StatusCode.UNAUTHENTICATED), "holdings are by tenant"
    worker.gate.set()
    assert isinstance((await router.client.events(replace(ASKED, prompt="demo's")))[-1], Finished)
    await asyncio.gather(*held)


class Recorded(dict[str, str]):
    """Metadata that remember what was asked of them."""

    def __init__(self, *pairs: Any) -> None:
        super().__init__(*pairs)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> str:
        self.read.add(key)
        return super().__getitem__(key)


async def test_the_credential_is_all_that_is_read_of_metadata(mesh: Any) -> None:
    _, router = mesh
    service = router.service

    def connect(metadata: Mapping[str, str]) -> None:
        service.connect(Hello("shop"), metadata, lambda _: None)

    for key, read in (
        ("demo-key", service.authenticate),
        ("operator-key", service.operations.check_operator),
        ("", connect),
    ):
        metadata = Recorded({"authorization": f"Bearer {key}"} | dict.fromkeys(CLAIMS, "acme"))
        read(metadata)
        assert metadata.read <= {"authorization"}


async def test_a_header_that_claims_something_changes_nothing(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker()
    tenants = (toy.tenant("demo", tiers=("standard", "batch"), requests_per_minute=10**4), toy.tenant("acme"))
    router = await start_router(worker, tenants=tenants, admin_keys=(key_hash("operator-key"),))
    async with channel(router.address) as chan:
        stub, admin = inference_pb2_grpc.InferenceServiceStub(chan), admin_pb2_grpc.AdminServiceStub(chan)
        for claim in product(CLAIMS, ("acme", "realtime", "Bearer acme-key", "Bearer operator-key")):
            metadata = [claim, ("authorization", "Bearer demo-key"), claim]
            body = wire.request_to(Request(" ".join(claim), 1))
            events = [event async for event in stub.Generate(body, metadata=metadata, timeout=10)]
            opening = worker.opens[-1]
            assert (events[0].started.tier, opening.tenant, opening.request.tier) == ("standard", "demo", "standard")
            outside = await reply(stub.ListModels(pb.ListModelsRequest(), metadata=[claim]))
            assert outside[1] is grpc.StatusCode.UNAUTHENTICATED, claim
            stats = await reply(admin.GetCacheStats(admin_pb2.GetCacheStatsRequest(), metadata=metadata))
            assert stats[1] is grpc.StatusCode.UNAUTHENTICATED, claim
    assert all(set(hop) <= {"user-agent"} for hop in worker.metadata), "nothing of it travels on"


async def test_two_credentials_are_none(mesh: Any) -> None:
    """Whatever stands before the router may have added its own: neither is taken for the other."""
    _, router = mesh
    async with channel(router.address) as chan:
        stub = inference_pb2_grpc.InferenceServiceStub(chan)
        for keys in (("demo-key", "acme-key"), ("wrong", "demo-key"), ("demo-key", "wrong")):
            metadata = [("authorization", f"Bearer {key}") for key in keys]
            assert (await reply(stub.ListModels(pb.ListModelsRequest(), metadata=metadata)))[1] is (
                grpc.StatusCode.UNAUTHENTICATED
            )


async def test_a_tenants_key_opens_no_relay(toy: Any, start_worker: Any, start_router: Any) -> None:
    """Nodes speak for tenants, so a client that could pose as one would be any of them."""
    nodes = (NodeConfig("shop", key_hash("node-key"), ("demo",)), NodeConfig("other", key_hash("other-key"), ("acme",)))
    router = await start_router(await start_worker(), nodes=nodes, tenants=(toy.tenant("demo"), toy.tenant("acme")))
    told = []
    for name, key in (("shop", "demo-key"), ("shop", "other-key"), ("shop", ""), ("nobody", "node-key")):
        with pytest.raises(Unauthenticated) as caught:
            router.service.connect(Hello(name), {"authorization": f"Bearer {key}"}, lambda _: None)
        told.append(caught.value.message.replace(name, "…"))
    assert len(set(told)) == 1, "whether a node exists is not told"


@pytest.mark.parametrize(
    "metadata",
    [
        [("x-long", "y" * 20_000)],
        [(f"x-{i}", "y" * 100) for i in range(400)],
        [("authorization", "Bearer " + "k" * 10**6)],
    ],
    ids=["one", "many", "key"],
)
async def test_oversized_metadata_are_refused_and_everything_lives(
    toy: Any, mesh: Any, metadata: list[tuple[str, str]]
) -> None:
    worker, router = mesh
    running = asyncio.create_task(router.client.events(ASKED))
    await toy.until(lambda: worker.running == 1)
    async with channel(router.address) as chan:
        stub = inference_pb2_grpc.InferenceServiceStub(chan)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
            error = from_rpc_error(caught.value)
            assert isinstance(error, RequestTooLarge)
            assert error.message == "the metadata are larger than the limit of 16384 bytes; send less"
        fits = [("x-long", "y" * 14_000), ("authorization", "Bearer demo-key")]
        assert (await stub.ListModels(pb.ListModelsRequest(), metadata=fits)).models, "a limit, not a lottery"
    worker.gate.set()
    assert isinstance((await running)[-1], Finished)


async def test_tenants_are_told_apart_by_nothing_in_a_refusal(toy: Any, start_worker: Any, start_router: Any) -> None:
    """Whether somebody else exists, or is busy, is no part of any text."""
    router = await start_router(await start_worker(), tenants=(toy.tenant("demo", tiers=("standard",)),))
    with pytest.raises(Forbidden) as forbidden:
        await router.client.events(replace(ASKED, tier="realtime"))
    assert forbidden.value.message == "tier 'realtime' is not open to this tenant; it may use standard"
    with pytest.raises(ModelNotFound):
        await router.client.events(replace(ASKED, model="acme"))

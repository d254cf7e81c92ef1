"""Edge node → router → worker: policy, asks, hand-overs, failover, usage; with a real link and toy workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tiermesh.common.config import NodeConfig
from tiermesh.common.errors import Forbidden, InvalidRequest, QuotaExceeded, Unauthenticated
from tiermesh.common.frames import (
    CloseReason,
    Hello,
    Open,
    Policy,
    RelayFinished,
    RelayTokens,
    SessionMode,
    UsageReport,
    Verdict,
)
from tiermesh.common.keys import key_hash, salted_hash
from tiermesh.common.relay_link import LinkEvents, LinkSession, RelayLink
from tiermesh.common.types import Origin, Quality, Request, Sampling

REQUEST = Request("hello", 20, sampling=Sampling(seed=1), tier="standard", quality=Quality.BOUNDED, request_id="r")


@dataclass
class Node:
    """An edge node's end of the relay."""

    link: RelayLink
    policies: list[Policy]
    task: asyncio.Task[None]

    async def end(self) -> None:
        """Breaks the stream."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    def open(self, mode: SessionMode, request: Request = REQUEST, tenant: str = "demo", **more: Any) -> LinkSession:
        session = self.link.session()
        session.open(Open(0, 0, request, mode, tenant=tenant, **more))
        return session


@pytest.fixture
def start_node(stack: AsyncExitStack) -> Callable[..., Awaitable[Node]]:
    """Connects an edge node to a router."""

    async def start(router: Any, name: str = "shop", key: str | None = None, wait: bool = True) -> Node:
        policies: list[Policy] = []
        metadata = [("authorization", f"Bearer {key}")] if key else []
        link = RelayLink(router.address, Hello(name), metadata=metadata, events=LinkEvents(policy=policies.append))
        task = asyncio.create_task(link.run())
        node = Node(link, policies, task)
        stack.push_async_callback(node.end)
        if wait:
            assert await link.wait_connected(5)
        return node

    return start


async def frames(session: LinkSession) -> AsyncIterator[Any]:
    while True:
        frame = await session.receive()
        yield frame
        if isinstance(frame, RelayFinished):
            return


async def verdict(session: LinkSession) -> Verdict:
    frame = await session.receive()
    assert isinstance(frame, Verdict)
    return frame


async def test_a_node_hears_what_it_may_do(toy: Any, start_worker: Any, start_router: Any, start_node: Any) -> None:
    nodes = (NodeConfig("shop", key_hash("node-key"), ("demo",)),)
    router = await start_router(await start_worker(), nodes=nodes, tenants=(toy.tenant("demo"), toy.tenant("acme")))
    node = await start_node(router, key="node-key")
    await toy.until(lambda: bool(node.policies))
    (told,), salt = node.policies[0].tenants, node.policies[0].salt
    assert (told.name, told.key_hashes) == ("demo", (salted_hash(salt, key_hash("demo-key")),))
    assert len(salt) == 16
    assert [tier.name for tier in node.policies[0].tiers] == ["realtime", "standard", "batch"]
    assert node.link.welcome is not None
    assert [model.id for model in node.link.welcome.models] == ["toy"]
    with pytest.raises(Forbidden, match="may not serve tenant 'acme'"):
        await node.open(SessionMode.GENERATE, tenant="acme").receive()


@pytest.mark.parametrize(("name", "key"), [("shop", "wrong"), ("shop", None), ("other", "node-key")])
async def test_a_node_without_its_credential_stays_outside(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any, name: str, key: str | None
) -> None:
    nodes = (NodeConfig("shop", key_hash("node-key"), ("demo",)),)
    router = await start_router(await start_worker(), nodes=nodes)
    node = await start_node(router, name, key, wait=False)
    await toy.until(lambda: isinstance(node.link.error, Unauthenticated))
    assert not node.link.connected


async def test_asks_are_verified_and_slots_are_free_between_them(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any
) -> None:
    worker = await start_worker()
    router = await start_router(worker)
    node = await start_node(router)
    own = toy.ids(REQUEST, 40)
    session = node.open(SessionMode.VERIFY)
    session.ask(0, [*own[:3], 1])
    told = await verdict(session)
    assert (told.position, told.stands, told.next_id) == (0, 3, own[3])
    assert router.running == 0
    session.ask(4, own[6:8], alone_ids=own[4:6])
    told = await verdict(session)
    assert (told.position, told.stands, told.next_id) == (6, 2, own[8])
    session.ask(9, [1], hand_over=True)
    told = await verdict(session)
    assert (told.stands, told.next_id) == (0, own[9])
    rest = [frame async for frame in frames(session)]
    assert [i for frame in rest[:-1] for i in frame.ids] == own[10:20]
    assert router.running == 0
    assert len(worker.opens) == 1
    session.close(CloseReason.DONE)


async def test_an_ask_survives_the_loss_of_its_worker(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any
) -> None:
    workers = [await start_worker(stop_before=5) for _ in range(2)]
    router = await start_router(*workers)
    await toy.until(lambda: router.sample("slots") == 18)
    node = await start_node(router)
    own = toy.ids(REQUEST, 40)
    session = node.open(SessionMode.VERIFY)
    session.ask(0, own[:6])
    await verdict(session)
    session.ask(7, [own[9]], alone_ids=own[7:9])  # held back by the worker
    dying, other = sorted(workers, key=lambda worker: -len(worker.opens))
    await toy.until(lambda: len(dying.peers[0].state[1][1]) > 7)
    other.gate.set()
    await dying.kill()
    told = await verdict(session)
    assert (told.position, told.stands, told.next_id) == (9, 1, own[10])
    assert list(other.opens[0].delivered_ids) == own[:7]
    session.ask(11, [1], hand_over=True)
    await verdict(session)
    rest = [frame async for frame in frames(session)]
    assert [i for frame in rest[:-1] for i in frame.ids] == own[12:20]


async def test_a_handed_over_answer_survives_the_loss_of_its_worker(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any
) -> None:
    workers = [await start_worker(stop_before=8) for _ in range(2)]
    router = await start_router(*workers)
    await toy.until(lambda: router.sample("slots") == 18)
    node = await start_node(router)
    own = toy.ids(REQUEST, 40)
    session = node.open(SessionMode.VERIFY)
    session.ask(0, own[:2], hand_over=True)
    await verdict(session)
    dying, other = sorted(workers, key=lambda worker: -len(worker.opens))
    got: list[int] = []
    while len(got) < 5:
        frame = await session.receive()
        assert isinstance(frame, RelayTokens)
        got += frame.ids
    other.gate.set()
    await dying.kill()
    got += [i async for frame in frames(session) if isinstance(frame, RelayTokens) for i in frame.ids]
    assert got == own[3:20]
    assert (other.opens[0].mode, list(other.opens[0].delivered_ids)) == (SessionMode.GENERATE, own[:8])


async def test_a_whole_request_goes_through_cache_and_pool(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any
) -> None:
    worker = await start_worker()
    router = await start_router(worker)
    node = await start_node(router)
    own = toy.ids(REQUEST, 20)
    for origin in (Origin.CLOUD, Origin.CACHE):
        got = [frame async for frame in frames(node.open(SessionMode.GENERATE)) if isinstance(frame, RelayTokens)]
        assert [i for frame in got for i in frame.ids] == own
        assert {frame.origin for frame in got} == {origin}
    shown = len(toy.text(own[:4]))
    session = node.open(SessionMode.GENERATE, delivered_ids=tuple(own[:4]), delivered_bytes=shown)
    got = [frame async for frame in frames(session) if isinstance(frame, RelayTokens)]
    assert (got[0].position, got[0].text, got[0].origin) == (4, toy.text(own[4:]), Origin.CACHE)
    assert len(worker.opens) == 1
    session = node.open(SessionMode.GENERATE, delivered_ids=(1, 2), delivered_bytes=4)
    got = [frame async for frame in frames(session) if isinstance(frame, RelayTokens)]
    assert [i for frame in got for i in frame.ids] == own[2:]
    assert worker.opens[1].delivered_ids == (1, 2)
    await toy.until(lambda: router.running == 0)


async def test_a_wrong_frame_ends_its_session_and_no_other(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any
) -> None:
    router = await start_router(await start_worker())
    node = await start_node(router)
    own = toy.ids(REQUEST, 40)
    good, bad = node.open(SessionMode.VERIFY), node.open(SessionMode.VERIFY)
    bad.ask(7, [1])
    with pytest.raises(InvalidRequest, match="position"):
        await bad.receive()
    with pytest.raises(InvalidRequest, match="max_tokens"):
        await node.open(SessionMode.GENERATE, replace(REQUEST, max_tokens=0)).receive()
    good.ask(0, own[:2])
    assert (await verdict(good)).stands == 2


async def test_a_node_that_goes_frees_all_it_held(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any
) -> None:
    worker = await start_worker(stop_before=3)
    router = await start_router(worker)
    node = await start_node(router)
    node.open(SessionMode.GENERATE)
    node.open(SessionMode.VERIFY).ask(0, [1], hand_over=True)
    await toy.until(lambda: worker.running == 2)
    assert router.sample("node_sessions", node="shop") == 2
    await node.end()
    await toy.until(lambda: worker.running == 0 and router.running == 0)
    assert router.sample("node_sessions", node="shop") == 0


async def test_usage_of_nodes_counts_against_limits(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any
) -> None:
    router = await start_router(await start_worker(), tenants=(toy.tenant("demo", tokens_per_minute=100),))
    node = await start_node(router)
    report = UsageReport(
        "r", "demo", "standard", prompt_tokens=50, edge_tokens=60, cloud_tokens=10, alone=3, asks=1, alone_tokens=40
    )
    node.link.report(report)
    node.link.report(replace(report, tenant="nobody"))
    await toy.until(lambda: router.sample("edge_units_total", decision="alone") == 3)
    assert router.sample("tokens_total", origin="edge") == 60
    assert router.sample("edge_alone_tokens_total", node="") == 40
    with pytest.raises(QuotaExceeded, match="tokens_per_minute"):
        await node.open(SessionMode.GENERATE).receive()


async def test_reports_of_audits_bill_nobody_and_name_configured_nodes(
    toy: Any, start_worker: Any, start_router: Any, start_node: Any
) -> None:
    nodes = (NodeConfig("shop", key_hash("node-key"), ("demo",)),)
    tenants = (toy.tenant("demo", requests_per_minute=1, tokens_per_minute=10),)
    router = await start_router(await start_worker(), nodes=nodes, tenants=tenants)
    node = await start_node(router, key="node-key")
    report = UsageReport("r", "demo", "standard", audits=2, audits_lost=1, wrong_tokens=3, labelled_tokens=20)
    for _ in range(3):
        node.link.report(replace(report, audit_tokens=100))
    await toy.until(lambda: router.sample("edge_audit_tokens_total", node="shop") == 300)
    assert router.sample("edge_wrong_tokens_total", node="shop") == 9
    assert router.sample("edge_labelled_tokens_total", node="shop") == 60
    assert router.sample("edge_audits_total", node="shop", outcome="labelled") == 3
    assert router.sample("edge_audits_total", node="shop", outcome="lost") == 3
    got = [frame async for frame in frames(node.open(SessionMode.GENERATE)) if isinstance(frame, RelayTokens)]
    assert got, "the tenant's one request of this minute is still there"

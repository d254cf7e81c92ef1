"""The relay itself, over real gRPC: frames, faults, reconnecting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tiermesh.common.errors import ConfigError, InvalidRequest, TiermeshError, Unauthenticated, Unavailable
from tiermesh.common.frames import (
    PROTOCOL_VERSION,
    Ask,
    Close,
    CloseReason,
    DownFrame,
    Hello,
    Open,
    RelayFinished,
    RelayTokens,
    SessionError,
    SessionMode,
    UpFrame,
    Verdict,
    Welcome,
)
from tiermesh.common.inference_servicer import bearer
from tiermesh.common.relay_link import LinkSession, RelayLink
from tiermesh.common.relay_server import Outbox, RelayServicer
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.rpc_errors import from_rpc_error
from tiermesh.common.types import FinishReason, Origin, Request, Usage
from tiermesh.v1 import relay_pb2, relay_pb2_grpc

TOKENS = 50


class Peer:
    """Answers an open with tokens one by one, an ask with a verdict or, where the draft is empty, with a fault."""

    def __init__(self, send: Callable[[DownFrame], None]) -> None:
        self.send = send
        self.frames: list[UpFrame] = []
        self.gone = asyncio.Event()
        send(Welcome("peer"))

    def receive(self, frame: UpFrame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Open):
            for i in range(len(frame.delivered_ids), TOKENS):
                self.send(RelayTokens(frame.session, frame.attempt, i, (i,), f"{i} "))
        elif isinstance(frame, Ask):
            if not frame.draft_ids:
                raise InvalidRequest.field("draft_ids", "is empty")
            self.send(Verdict(frame.session, frame.attempt, frame.position, len(frame.draft_ids), 7))

    async def closed(self) -> None:
        self.gone.set()


class Place:
    """A server that can be stopped and started again at the same address."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.address = "127.0.0.1:0"

    def connect(self, hello: Hello, metadata: Mapping[str, str], send: Callable[[DownFrame], None]) -> Peer:
        if bearer(metadata) == "wrong":
            raise Unauthenticated("this credential is not known; make one with `tiermesh keys new`")
        self.peers.append(Peer(send))
        return self.peers[-1]

    async def start(self) -> None:
        self.server = RpcServer()
        self.server.add_relay(RelayServicer(self.connect))
        self.address = await self.server.start(self.address)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    await place.start()
    yield place
    await place.server.stop(0)


@asynccontextmanager
async def linked(place: Place, key: str = "") -> AsyncIterator[RelayLink]:
    link = RelayLink(place.address, Hello("test"), metadata=[("authorization", f"Bearer {key}")])
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def opened(link: RelayLink, delivered: tuple[int, ...] = ()) -> LinkSession:
    session = link.session()
    session.open(Open(0, 0, Request("x", TOKENS), SessionMode.GENERATE, delivered_ids=delivered))
    return session


async def collect(session: LinkSession, delivered: int = 0) -> list[int]:
    ids: list[int] = []
    async with asyncio.timeout(5):
        while delivered + len(ids) < TOKENS:
            frame = await session.receive()
            assert isinstance(frame, RelayTokens)
            assert frame.text == "".join(f"{i} " for i in frame.ids)
            ids += frame.ids
    return ids


def token(number: int) -> RelayTokens:
    """One behind all that `opened` can have had delivered, for the first session of a link."""
    return RelayTokens(1, 1, TOKENS + number, (TOKENS + number,), "x")


async def peer_of(place: Place) -> Peer:
    """The first, once a session was opened there."""
    async with asyncio.timeout(5):
        while not place.peers[0].frames:  # noqa: ASYNC110 - the peer has no event for it
            await asyncio.sleep(0.002)
    return place.peers[0]


async def said(session: LinkSession, gap_s: float, send: Callable[[DownFrame], None], frame: DownFrame) -> Any:
    """What is received when this is sent."""
    async with asyncio.timeout(5):
        send(frame)
        return await session.receive(gap_s)


async def drain(session: LinkSession) -> None:
    async with asyncio.timeout(5):
        while True:
            await session.receive()


async def ended(call: Any) -> None:
    async with asyncio.timeout(5):
        while await call.read() is not grpc.aio.EOF:
            pass
        await call


async def test_sessions_share_a_stream_and_keep_their_order(place: Place) -> None:
    async with linked(place) as link:
        assert await link.wait_connected(5)
        sessions = [opened(link) for _ in range(20)]
        for ids in await asyncio.gather(*map(collect, sessions)):
            assert ids == list(range(TOKENS))


async def test_a_resumed_session_begins_after_what_was_delivered(place: Place) -> None:
    async with linked(place) as link:
        assert await link.wait_connected(5)
        assert await collect(opened(link, tuple(range(30))), 30) == list(range(30, TOKENS))


async def test_a_fault_ends_its_session_alone(place: Place) -> None:
    async with linked(place) as link:
        assert await link.wait_connected(5)
        bad, good = opened(link), opened(link)
        bad.ask(TOKENS, ())
        with pytest.raises(InvalidRequest, match="draft_ids"):
            await drain(bad)
        assert await collect(good) == list(range(TOKENS))
        good.ask(TOKENS, (1, 2))
        verdict = await good.receive()
        assert isinstance(verdict, Verdict)
        assert (verdict.stands, verdict.next_id) == (2, 7)


async def test_closing_reaches_the_other_side_once(place: Place) -> None:
    async with linked(place) as link:
        assert await link.wait_connected(5)
        session = opened(link)
        await collect(session)
        session.close(CloseReason.CANCELLED)
        session.close(CloseReason.CANCELLED)
        await collect(opened(link))
        closes = [frame for frame in place.peers[0].frames if isinstance(frame, Close)]
        assert [frame.reason for frame in closes] == [CloseReason.CANCELLED]


async def test_with_a_gap_tokens_wait_for_those_behind_them_and_for_nothing_else(place: Place) -> None:
    async with linked(place) as link:
        assert await link.wait_connected(5)
        session = opened(link, tuple(range(TOKENS)))
        send = (await peer_of(place)).send
        received = [await said(session, 60, send, token(0))]
        waits = asyncio.create_task(session.receive(60))
        for number in (1, 2):
            send(token(number))
        send(RelayFinished(1, 1, FinishReason.STOP, Usage()))
        async with asyncio.timeout(5):
            received += [await waits, await session.receive(60)]
        assert [getattr(frame, "ids", None) for frame in received] == [(TOKENS,), (TOKENS + 1, TOKENS + 2), None]


async def test_the_gap_between_tokens_is_kept_and_an_error_does_not_wait_for_it(place: Place) -> None:
    async with linked(place) as link:
        assert await link.wait_connected(5)
        session = opened(link, tuple(range(TOKENS)))
        send = (await peer_of(place)).send
        await said(session, 0.1, send, token(0))
        began = asyncio.get_running_loop().time()
        await said(session, 0.1, send, token(1))
        assert asyncio.get_running_loop().time() - began >= 0.09
        waits = asyncio.create_task(session.receive(60))
        send(token(2))
        send(SessionError(1, 1, InvalidRequest("no")))
        async with asyncio.timeout(5):
            assert isinstance(await waits, RelayTokens)
            with pytest.raises(InvalidRequest):
                await session.receive(60)


async def test_a_lost_server_fails_sessions_and_the_link_heals(place: Place) -> None:
    async with linked(place) as link:
        assert await link.wait_connected(5)
        session = opened(link)
        await collect(session)
        await place.server.stop(0)
        with pytest.raises(Unavailable):
            await drain(session)
        with pytest.raises(Unavailable):
            opened(link)
        await place.start()
        assert await link.wait_connected(10)
        assert await collect(opened(link)) == list(range(TOKENS))


async def test_a_lost_caller_is_told_to_the_peer(place: Place) -> None:
    async with linked(place) as link:
        assert await link.wait_connected(5)
    async with asyncio.timeout(5):
        await place.peers[0].gone.wait()


async def test_a_wrong_credential_is_kept_as_the_links_error(place: Place) -> None:
    async with linked(place, key="wrong") as link:
        assert not await link.wait_connected(0.3)
        assert isinstance(link.error, Unauthenticated)
        with pytest.raises(Unavailable, match="tiermesh keys new"):
            opened(link)


@pytest.mark.parametrize("message", [b"\xff" * 100, b"", b"\x0a\x02\x12\x00", b"\x0a\x00"])
async def test_garbage_ends_its_stream_and_nothing_else(place: Place, message: bytes) -> None:
    async with linked(place) as link, channel(place.address) as chan:
        assert await link.wait_connected(5)
        call = chan.stream_stream(
            "/tiermesh.v1.RelayService/Relay", response_deserializer=relay_pb2.RelayResponse.FromString
        )()
        await call.write(message)
        with pytest.raises(grpc.RpcError):
            await ended(call)
        assert await collect(opened(link)) == list(range(TOKENS))


async def test_a_frame_that_means_nothing_fails_its_session(place: Place) -> None:
    async with channel(place.address) as chan:
        call = relay_pb2_grpc.RelayServiceStub(chan).Relay()
        await call.write(
            relay_pb2.RelayRequest(
                frames=[
                    relay_pb2.UpFrame(hello=relay_pb2.Hello(protocol_version=PROTOCOL_VERSION, name="x")),
                    relay_pb2.UpFrame(open=relay_pb2.Open(session=9, attempt=1, mode=99)),
                ]
            )
        )
        frames: list[relay_pb2.DownFrame] = []
        async with asyncio.timeout(5):
            while len(frames) < 2:
                frames += (await call.read()).frames
        assert (frames[1].error.session, frames[1].error.error.reason) == (9, "INVALID_ARGUMENT")
        call.cancel()


async def test_another_protocol_version_is_refused_by_name(place: Place) -> None:
    async with channel(place.address) as chan:
        call = relay_pb2_grpc.RelayServiceStub(chan).Relay()
        hello = relay_pb2.Hello(protocol_version=99, name="x")
        await call.write(relay_pb2.RelayRequest(frames=[relay_pb2.UpFrame(hello=hello)]))
        with pytest.raises(grpc.RpcError) as caught:
            await ended(call)
        assert isinstance(from_rpc_error(caught.value), InvalidRequest)
        assert f"version {PROTOCOL_VERSION}" in from_rpc_error(caught.value).message


async def test_a_port_in_use_is_refused_by_name(place: Place) -> None:
    with pytest.raises(ConfigError, match=place.address):
        await RpcServer().start(place.address)


async def test_tokens_merge_only_while_contiguous() -> None:
    outbox = Outbox()
    outbox.put(RelayTokens(1, 1, 0, (1,), "a"))
    outbox.put(RelayTokens(2, 1, 0, (9,), "z"))
    outbox.put(RelayTokens(1, 1, 1, (2,), "b"))
    outbox.put(Verdict(1, 1, 2, 1, 5))
    outbox.put(RelayTokens(1, 1, 4, (3,), "c"))
    outbox.put(RelayTokens(1, 2, 5, (4,), "d"))
    assert await outbox.take() == [
        RelayTokens(1, 1, 0, (1, 2), "ab"),
        RelayTokens(2, 1, 0, (9,), "z"),
        Verdict(1, 1, 2, 1, 5),
        RelayTokens(1, 1, 4, (3,), "c"),
        RelayTokens(1, 2, 5, (4,), "d"),
    ]


async def test_what_waits_goes_as_messages_that_their_reader_takes(place: Place) -> None:
    """A worker that can't send for a while has more to say than one message may hold."""
    async with linked(place) as link:
        assert await link.wait_connected(5)
        session = opened(link, delivered=tuple(range(TOKENS)))
        peer = await peer_of(place)
        positions = range(TOKENS, TOKENS + 20)
        for at in positions:  # of two origins in turn, so that they can't merge
            peer.send(RelayTokens(1, 1, at, (at,), "x" * 2**20, origin=Origin.CLOUD if at % 2 else Origin.EDGE))
        async with asyncio.timeout(10):
            frames = [await session.receive() for _ in positions]
    assert [frame.position for frame in frames if isinstance(frame, RelayTokens)] == list(positions)


async def test_a_reader_that_never_reads_is_told_so() -> None:
    outbox = Outbox()
    for i in range(100_001):
        outbox.put(Verdict(i, 1, 0, 0, None))
    with pytest.raises(TiermeshError, match="does not keep up"):
        await outbox.overflow()

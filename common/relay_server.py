"""The answering side of the relay: worker and router implement `RelayPeer`, this moves the frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import grpc

from tiermesh.v1 import relay_pb2 as pb
from tiermesh.v1 import relay_pb2_grpc

from . import wire_frames as wire
from .errors import InternalError, InvalidRequest, TiermeshError, Unavailable
from .frames import PROTOCOL_VERSION, DownFrame, Hello, RelayTokens, SessionError, UpFrame
from .inference_servicer import metadata_of
from .patient_writer import STALLED_S, PatientWriter
from .rpc_errors import abort
from .telemetry import get_logger

_log = get_logger()

_MAX_WAITING_FRAMES = 100_000
"""Beyond this the reader is taken for stuck: 16 streams at 1 k tokens/s fill it in 6 s without a single read."""

_MESSAGE_BYTES = 2**20
"""Beyond this, frames that wait go as several messages."""

_MOST_MERGED = 1024
"""Ids from which on tokens are a frame of their own; with 20 logprobs each, a quarter of a MiB."""

_HELLO_TIMEOUT_S = 10.0


class RelayPeer(Protocol):
    """One connected caller and its sessions."""

    def receive(self, frame: UpFrame) -> None:
        """Takes a frame; never blocks. A TiermeshError raised here ends the frame's session, not the stream."""
        ...

    async def closed(self) -> None:
        """The stream is gone: end all its sessions."""
        ...


Connect = Callable[[Hello, Mapping[str, str], Callable[[DownFrame], None]], RelayPeer]
"""(hello, metadata, send) → peer. `send` is called on the event loop and never blocks. May raise Unauthenticated."""


class Outbox:
    """Frames that wait for the writer. Tokens of one session merge while they wait."""

    def __init__(self) -> None:
        self._frames: list[DownFrame] = []
        self._last_tokens: dict[int, int] = {}
        self._wake = asyncio.Event()
        self._overflow = asyncio.Event()

    def put(self, frame: DownFrame) -> None:
        """Adds a frame; never blocks."""
        if isinstance(frame, RelayTokens):
            at = self._last_tokens.get(frame.session)
            if at is not None and (merged := merge(self._frames[at], frame)):
                self._frames[at] = merged
                return
            self._last_tokens[frame.session] = len(self._frames)
        else:
            self._last_tokens.pop(getattr(frame, "session", -1), None)
        self._frames.append(frame)
        if len(self._frames) > _MAX_WAITING_FRAMES:
            self._overflow.set()
        self._wake.set()

    async def take(self) -> list[DownFrame]:
        """All that waits, in order, as soon as there is something."""
        await self._wake.wait()
        frames, self._frames = self._frames, []
        self._last_tokens.clear()
        self._wake.clear()
        return frames

    async def overflow(self) -> None:
        """Raises Unavailable once too much waits, also while a write goes on: the reader is stuck."""
        await self._overflow.wait()
        raise Unavailable("the reader of this stream does not keep up; connect again")


def merge(first: DownFrame, second: RelayTokens) -> RelayTokens | None:
    """Both as one frame, or None where they are not contiguous tokens of one attempt and origin, or already many."""
    if (
        not isinstance(first, RelayTokens)
        or len(first.ids) >= _MOST_MERGED
        or (first.session, first.attempt, first.origin) != (second.session, second.attempt, second.origin)
        or first.position + len(first.ids) != second.position
    ):
        return None
    return replace(
        first,
        ids=first.ids + second.ids,
        text=first.text + second.text,
        logprobs=first.logprobs + second.logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
    )


class RelayServicer(relay_pb2_grpc.RelayServiceServicer):
    """One call is one peer."""

    def __init__(self, connect: Connect, stalled_s: float = STALLED_S) -> None:
        self._connect = connect
        self._stalled_s = stalled_s

    async def Relay(  # type: ignore[override]
        self, request_iterator: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Reads hello, then moves frames both ways until either side ends."""
        outbox = Outbox()
        peer: RelayPeer | None = None
        try:
            hello, early = await _hello(context)
            peer = self._connect(hello, metadata_of(context), outbox.put)
            _take(peer, early, outbox)
            async with PatientWriter(context, self._stalled_s) as writer:
                await _exchange(peer, outbox, context, writer)
        except TiermeshError as error:
            await abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception:  # noqa: BLE001 - the top of a task; logged
            _log.exception("defect", method="Relay")
            await abort(context, InternalError("an internal error ended this stream; connect again"))
        finally:
            if peer is not None:
                await asyncio.shield(peer.closed())


async def _hello(context: grpc.aio.ServicerContext[Any, Any]) -> tuple[Hello, list[pb.UpFrame]]:
    """The first frame, and what came in the same message."""
    try:
        async with asyncio.timeout(_HELLO_TIMEOUT_S):
            message = await context.read()
    except TimeoutError as exc:
        raise InvalidRequest(f"no hello frame came within {_HELLO_TIMEOUT_S:g} s") from exc
    frames = [] if message is grpc.aio.EOF else list(message.frames)
    hello = wire.up_from(frames[0]) if frames else None
    if not isinstance(hello, Hello):
        raise InvalidRequest("the first frame of a relay must be hello")
    if hello.protocol_version != PROTOCOL_VERSION:
        raise InvalidRequest.field(
            "protocol_version", f"{hello.protocol_version} is not spoken here; this is version {PROTOCOL_VERSION}"
        )
    return hello, frames[1:]


async def _exchange(
    peer: RelayPeer, outbox: Outbox, context: grpc.aio.ServicerContext[Any, Any], writer: PatientWriter
) -> None:
    """Ends when the caller half-closes; a failure on either side ends both."""
    tasks = [
        asyncio.create_task(_write(outbox, writer)),
        asyncio.create_task(_read(peer, outbox, context)),
        asyncio.create_task(outbox.overflow()),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _write(outbox: Outbox, writer: PatientWriter) -> None:
    while True:
        for message in _messages(await outbox.take()):
            await writer.write(message)


def _messages(frames: list[DownFrame]) -> Iterator[pb.RelayResponse]:
    """In order, as few as may be: when a reader was away for long, all that waits can be more than a message holds."""
    some: list[pb.DownFrame] = []
    size = 0
    for frame in map(wire.down_to, frames):
        size += frame.ByteSize()
        if some and size > _MESSAGE_BYTES:
            yield pb.RelayResponse(frames=some)
            some, size = [], frame.ByteSize()
        some.append(frame)
    yield pb.RelayResponse(frames=some)


async def _read(peer: RelayPeer, outbox: Outbox, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        _take(peer, message.frames, outbox)


def _take(peer: RelayPeer, frames: Any, outbox: Outbox) -> None:
    """A bad frame ends its session with a reason; one of no session ends the stream."""
    for frame in frames:
        try:
            peer.receive(wire.up_from(frame))
        except TiermeshError as error:
            owner = wire.session_of(frame)
            if owner is None:
                raise
            outbox.put(SessionError(*owner, error))

"""The asking side of the relay: edge node to router, router to worker. Connects, heals, keeps sessions apart."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc

from tiermesh.v1 import relay_pb2 as pb
from tiermesh.v1 import relay_pb2_grpc

from . import wire_frames as wire
from .errors import InternalError, TiermeshError, Unavailable
from .frames import (
    PROTOCOL_VERSION,
    Ask,
    Close,
    CloseReason,
    DownFrame,
    Hello,
    Load,
    Open,
    Policy,
    RelayTokens,
    SessionError,
    SessionFrame,
    UpFrame,
    UsageReport,
    Verdict,
    Welcome,
)
from .relay_server import merge
from .rpc import channel
from .rpc_errors import from_rpc_error
from .telemetry import get_logger

_log = get_logger()

_WELCOME_TIMEOUT_S = 5.0
_BACKOFF_S = (0.1, 5.0)
"""First and longest pause between attempts to connect."""


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """What the owner of a link hears; each is called on the event loop and must not block."""

    welcome: Callable[[Welcome], None] = lambda _: None
    policy: Callable[[Policy], None] = lambda _: None
    load: Callable[[Load], None] = lambda _: None
    lost: Callable[[TiermeshError], None] = lambda _: None
    """The stream broke; every session of it has ended with Unavailable."""


class LinkSession:
    """One session of a link. Frames of other attempts, and tokens that came before, are dropped."""

    def __init__(self, link: RelayLink, session: int) -> None:
        self._link = link
        self._id = session
        self._attempt = 0
        self._expected = 0
        self._frames: deque[SessionFrame] = deque()
        self._error: TiermeshError | None = None
        self._wake = asyncio.Event()
        self._given = float("-inf")
        """When tokens were given last, by the event loop's clock."""
        self._open = False

    @property
    def failed(self) -> bool:
        """Whether the session ended with an error; only a new `open` helps."""
        return self._error is not None

    def open(self, frame: Open) -> None:
        """Sends Open with this session's id and the next attempt. Raises Unavailable when the link is down."""
        self._attempt += 1
        self._expected = len(frame.delivered_ids)
        self._frames.clear()
        self._error = None
        self._link._send(replace(frame, session=self._id, attempt=self._attempt))
        self._link._register(self._id, self)
        self._open = True

    def ask(
        self, position: int, draft_ids: Sequence[int], alone_ids: Sequence[int] = (), hand_over: bool = False
    ) -> None:
        """Sends a draft. Raises Unavailable when the link is down."""
        self._link._send(Ask(self._id, self._attempt, position, tuple(draft_ids), tuple(alone_ids), hand_over))

    async def receive(self, gap_s: float = 0.0) -> SessionFrame:
        """The next frame; raises the session's error, or Unavailable when the stream broke.

        Tokens come no sooner than `gap_s` after those before, unless something else stands behind them.
        """
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        if gap_s and isinstance(self._frames[0], RelayTokens):
            await self._gather(gap_s)
        return self._frames.popleft()

    async def _gather(self, gap_s: float) -> None:
        """Lets tokens join those that wait, which wakes nobody; what can't join them does."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._given + gap_s and len(self._frames) == 1 and self._error is None:
            self._wake.clear()
            timer = loop.call_at(self._given + gap_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()
        self._given = loop.time()

    def close(self, reason: CloseReason) -> None:
        """Ends the session; safe at any time, any number of times."""
        if self._open:
            self._open = False
            self._link._forget(self._id)
            with suppress(Unavailable):
                self._link._send(Close(self._id, self._attempt, reason))

    def ended(self) -> None:
        """The answerer has said RelayFinished, and with that forgotten the session: there is nothing to close."""
        if self._open:
            self._open = False
            self._link._forget(self._id)

    def _take(self, frame: SessionFrame) -> None:
        if frame.attempt != self._attempt:
            return
        if isinstance(frame, SessionError):
            self._fail(frame.error)
            return
        if isinstance(frame, RelayTokens):
            if frame.position + len(frame.ids) <= self._expected and frame.ids:
                return
            if frame.position != self._expected:
                self._fail(InternalError("the answerer skipped or repeated tokens; try again"))
                return
            self._expected += len(frame.ids)
            if self._frames and (merged := merge(self._frames[-1], frame)):
                self._frames[-1] = merged
                return
        elif isinstance(frame, Verdict):
            self._expected = frame.position + frame.stands + (frame.next_id is not None)
        self._frames.append(frame)
        self._wake.set()

    def _fail(self, error: TiermeshError) -> None:
        self._error = error
        self._wake.set()


class RelayLink:
    """A relay stream that heals itself. All methods belong to the event loop's thread."""

    def __init__(
        self,
        address: str,
        hello: Hello,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        events: LinkEvents | None = None,
        pause_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`pause_s` is asked behind each message how long the next one waits, for frames to come together."""
        self.address = address
        self.welcome: Welcome | None = None
        """Of the present stream; None while there is none."""
        self.load: Load | None = None
        """The last one of the present stream."""
        self.error: TiermeshError | None = None
        """Why the last attempt to connect failed."""
        self.messages = 0
        """That came, over all streams: while this stands still, the answerer is silent."""
        self._hello = hello
        self._metadata = tuple(metadata)
        self._events = events or LinkEvents()
        self._pause_s = pause_s
        self._sessions: dict[int, LinkSession] = {}
        self._next_session = 1
        self._outbox: list[UpFrame] = []
        self._wake = asyncio.Event()
        self._connected = asyncio.Event()
        self._reading = asyncio.Timeout(None)

    @property
    def connected(self) -> bool:
        """Whether frames can be sent."""
        return self.welcome is not None

    async def wait_connected(self, timeout_s: float) -> bool:
        """Waits until the stream stands; False when it does not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        return self.connected

    def session(self) -> LinkSession:
        """A new session; nothing is sent before its `open`."""
        self._next_session += 1
        return LinkSession(self, self._next_session - 1)

    def report(self, report: UsageReport) -> None:
        """Sends a usage report. Raises Unavailable when the link is down."""
        self._send(report)

    def drop(self) -> None:
        """Gives the present stream up as if it had broken, and connects anew."""
        with suppress(RuntimeError):  # there is none, or it is ending already
            self._reading.reschedule(0)

    async def run(self) -> None:
        """Keeps the stream up until cancelled, with jittered backoff between attempts."""
        pause_s = _BACKOFF_S[0]
        async with channel(self.address) as chan:
            while True:
                try:
                    await self._stream(chan)
                    error: TiermeshError = Unavailable(f"{self.address} ended the stream")
                except grpc.RpcError as exc:
                    error = from_rpc_error(exc)
                except TiermeshError as exc:
                    error = exc
                finally:
                    was_up = self.connected
                    self._down()
                self._lost(error, was_up)
                pause_s = _BACKOFF_S[0] if was_up else min(2 * pause_s, _BACKOFF_S[1])
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    async def _stream(self, chan: grpc.aio.Channel) -> None:
        """One stream from hello to its end."""
        call = relay_pb2_grpc.RelayServiceStub(chan).Relay(metadata=self._metadata)
        writer: asyncio.Task[None] | None = None
        try:
            await call.write(pb.RelayRequest(frames=[wire.up_to(self._hello)]))
            await self._welcomed(call)
            writer = asyncio.create_task(self._write(call))
            async with asyncio.timeout(None) as self._reading:
                while isinstance(message := await call.read(), pb.RelayResponse):
                    self.messages += 1
                    for frame in message.frames:
                        self._take(wire.down_from(frame))
            status = await call.code()
            if status is not grpc.StatusCode.OK:
                await call  # type: ignore[misc] # raises the call's error
        except TimeoutError as exc:
            raise Unavailable(f"{self.address} has said nothing for too long") from exc
        finally:
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    async def _welcomed(self, call: Any) -> None:
        try:
            async with asyncio.timeout(_WELCOME_TIMEOUT_S):
                message = await call.read()
        except TimeoutError as exc:
            raise Unavailable(f"{self.address} did not answer hello within {_WELCOME_TIMEOUT_S:g} s") from exc
        if message is grpc.aio.EOF:
            raise from_rpc_error(await _rpc_error(call))
        for frame in map(wire.down_from, message.frames):
            if self.welcome is None:
                if not isinstance(frame, Welcome) or frame.protocol_version != PROTOCOL_VERSION:
                    raise Unavailable(f"{self.address} does not speak version {PROTOCOL_VERSION} of the relay")
                _log.info("link_up", address=self.address, peer=frame.name)
                self.error = None
                self.welcome = frame
                self._connected.set()
            self._take(frame)

    async def _write(self, call: Any) -> None:
        """Sends all that waits as one message. A broken stream shows on the reading side."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            while True:
                await self._wake.wait()
                self._wake.clear()
                frames, self._outbox = self._outbox, []
                await call.write(pb.RelayRequest(frames=[wire.up_to(frame) for frame in frames]))
                if pause_s := self._pause_s():
                    await asyncio.sleep(pause_s)

    def _take(self, frame: DownFrame) -> None:
        if isinstance(frame, Welcome):
            self.welcome = frame
            self._events.welcome(frame)
        elif isinstance(frame, Policy):
            self._events.policy(frame)
        elif isinstance(frame, Load):
            self.load = frame
            self._events.load(frame)
        elif session := self._sessions.get(frame.session):
            session._take(frame)

    def _send(self, frame: UpFrame) -> None:
        if not self.connected:
            why = f": {self.error.message}" if self.error else ""
            raise Unavailable(f"{self.address} can't be reached{why}")
        self._outbox.append(frame)
        self._wake.set()

    def _register(self, session: int, owner: LinkSession) -> None:
        self._sessions[session] = owner

    def _forget(self, session: int) -> None:
        self._sessions.pop(session, None)

    def _down(self) -> None:
        """The stream is gone: nothing that waits is for the next one."""
        self.welcome = self.load = None
        self._connected.clear()
        self._outbox.clear()
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session._fail(Unavailable(f"the stream to {self.address} broke"))

    def _lost(self, error: TiermeshError, was_up: bool) -> None:
        if was_up or self.error is None or type(self.error) is not type(error):
            _log.warning("link_down", address=self.address, reason=error.reason, detail=error.message)
        self.error = error
        if was_up:
            self._events.lost(error)


async def _rpc_error(call: Any) -> grpc.RpcError:
    """The error of a call that ended before its first message."""
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), details=await call.details()
    )

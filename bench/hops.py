"""What the router is measured between and beside: a worker that answers at once, and a relay without any logic.

Each is a process: `python -P -m tiermesh.child PARENT tiermesh.bench.hops worker | proxy WORKER`. The worker gives
every sequence one token per step, and a step is over when its message is with gRPC: as fast as a wire takes it, one
message for all sequences on the relay, one per token on a direct call. The proxy does what the router does to the
bytes (a client's stream becomes a session of one relay, and back) and nothing else: no types of ours, no tenants, no
queue, no cache.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from tiermesh.v1 import inference_pb2 as ipb
from tiermesh.v1 import inference_pb2_grpc, relay_pb2_grpc
from tiermesh.v1 import relay_pb2 as rpb
from tiermesh.v1 import types_pb2 as tpb

from ..common import wire
from ..common.frames import PROTOCOL_VERSION
from ..common.rpc import RpcServer, channel
from ..common.types import Digests, ModelInfo

IDLE = "idle"
"""A prompt that gets one token and then nothing until it is cancelled."""
_SLOTS = 1 << 14
_MODEL = wire.model_to(ModelInfo("stub", Digests("m", "t", "c"), max_context=4096, vocab_size=4096))
_STARTED = ipb.GenerateResponse(started=ipb.Started(model="stub", tier="standard", quality=tpb.QUALITY_EXACT))
_TOKEN = ipb.GenerateResponse(tokens=ipb.Tokens(ids=[11], text=" word", origin=tpb.ORIGIN_CLOUD))


class _Sequences:
    """What the worker has to say on one relay."""

    def __init__(self) -> None:
        self._left: dict[tuple[int, int], list[int]] = {}
        """Position and end of each, by session and attempt."""
        self.wake = asyncio.Event()

    def take(self, frame: rpb.UpFrame) -> None:
        """Begins or ends one."""
        if frame.HasField("open"):
            opened = frame.open
            end = 1 << 30 if opened.request.prompt.text == IDLE else opened.request.max_tokens
            self._left[opened.session, opened.attempt] = [len(opened.delivered_ids), end]
            self.wake.set()
        elif frame.HasField("close"):
            self._left.pop((frame.close.session, frame.close.attempt), None)

    def step(self) -> list[rpb.DownFrame]:
        """One token each; the end with the last one."""
        frames = []
        for (session, attempt), progress in list(self._left.items()):
            position, end = progress
            if end == 1 << 30 and position:
                continue
            where: dict[str, Any] = {"session": session, "attempt": attempt}
            tokens = rpb.RelayTokens(**where, position=position, ids=[11], text=" word", origin=tpb.ORIGIN_CLOUD)
            frames.append(rpb.DownFrame(tokens=tokens))
            progress[0] += 1
            if progress[0] >= end:
                del self._left[session, attempt]
                frames.append(rpb.DownFrame(finished=rpb.RelayFinished(**where, **_ending(end))))
        return frames


def _ending(tokens: int) -> dict[str, Any]:
    return {"reason": tpb.FINISH_REASON_LENGTH, "usage": tpb.Usage(prompt_tokens=8, completion_tokens=tokens)}


class _WorkerRelay(relay_pb2_grpc.RelayServiceServicer):
    async def Relay(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await context.read()
        welcome = rpb.Welcome(protocol_version=PROTOCOL_VERSION, name="stub", models=[_MODEL])
        load = rpb.Load(slots=_SLOTS, kv_free=1.0, step_ms=1.0)
        await context.write(rpb.RelayResponse(frames=[rpb.DownFrame(welcome=welcome), rpb.DownFrame(load=load)]))
        sequences = _Sequences()
        speaker = asyncio.create_task(self._speak(sequences, context))
        try:
            while isinstance(message := await context.read(), rpb.RelayRequest):
                for frame in message.frames:
                    sequences.take(frame)
        finally:
            speaker.cancel()

    async def _speak(self, sequences: _Sequences, context: Any) -> None:
        while True:
            if frames := sequences.step():
                await context.write(rpb.RelayResponse(frames=frames))
            else:
                sequences.wake.clear()
                await sequences.wake.wait()


class _WorkerCalls(inference_pb2_grpc.InferenceServiceServicer):
    async def Generate(self, request: ipb.GenerateRequest, context: Any) -> AsyncIterator[ipb.GenerateResponse]:
        yield _STARTED
        for _ in range(request.max_tokens):
            yield _TOKEN
        yield ipb.GenerateResponse(finished=ipb.Finished(**_ending(request.max_tokens)))


class _ProxyCalls(inference_pb2_grpc.InferenceServiceServicer):
    """Client streams over one relay to the worker."""

    def __init__(self) -> None:
        self._sessions: dict[int, asyncio.Queue[rpb.DownFrame]] = {}
        self._numbers = itertools.count(1)
        self._outbox: list[rpb.UpFrame] = []
        self._wake = asyncio.Event()
        self.up = asyncio.Event()

    async def relay(self, worker: str) -> None:
        """Moves frames until cancelled."""
        async with channel(worker) as chan:
            call: Any = relay_pb2_grpc.RelayServiceStub(chan).Relay()
            hello = rpb.Hello(protocol_version=PROTOCOL_VERSION, name="proxy")
            await call.write(rpb.RelayRequest(frames=[rpb.UpFrame(hello=hello)]))
            writer = asyncio.create_task(self._write(call))
            try:
                while isinstance(message := await call.read(), rpb.RelayResponse):
                    self.up.set()
                    for frame in message.frames:
                        inner = getattr(frame, frame.WhichOneof("frame") or "")
                        if (queue := self._sessions.get(getattr(inner, "session", 0))) is not None:
                            queue.put_nowait(frame)
            finally:
                writer.cancel()

    async def _write(self, call: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            frames, self._outbox = self._outbox, []
            await call.write(rpb.RelayRequest(frames=frames))

    async def Generate(self, request: ipb.GenerateRequest, context: Any) -> AsyncIterator[ipb.GenerateResponse]:
        number = next(self._numbers)
        queue = self._sessions[number] = asyncio.Queue()
        opened = rpb.Open(session=number, attempt=1, request=request, mode=rpb.SESSION_MODE_GENERATE)
        self._outbox.append(rpb.UpFrame(open=opened))
        self._wake.set()
        try:
            yield _STARTED
            while (frame := await queue.get()).HasField("tokens"):
                given = frame.tokens
                yield ipb.GenerateResponse(tokens=ipb.Tokens(ids=given.ids, text=given.text, origin=given.origin))
            ended = frame.finished
            yield ipb.GenerateResponse(finished=ipb.Finished(reason=ended.reason, usage=ended.usage))
        finally:
            del self._sessions[number]


async def _serve(role: str, worker: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # The stubs' types ask for all methods; those that are missing answer UNIMPLEMENTED.
    worker_calls: Any = _WorkerCalls
    proxy_calls: Any = _ProxyCalls
    server: Any = RpcServer()
    relay: asyncio.Task[None] | None = None
    if role == "worker":
        server.add_inference(worker_calls())
        server.add_relay(_WorkerRelay())
    else:
        proxy = proxy_calls()
        server.add_inference(proxy)
        relay = asyncio.create_task(proxy.relay(worker))
        await proxy.up.wait()
    address = await server.start("127.0.0.1:0")
    await server.ready(True)
    print(f"listening {address}", flush=True)
    await stop.wait()
    if relay is not None:
        relay.cancel()
    await server.stop(0)


def main() -> int:
    """Serves until SIGTERM."""
    role, worker = (*sys.argv[1:], "")[:2]
    uvloop.run(_serve(role, worker))
    return 0


if __name__ == "__main__":
    sys.exit(main())

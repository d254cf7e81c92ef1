"""The five calls over one gRPC channel, in our own types and errors; the SDK's only file that sees generated code."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import grpc

from tiermesh.common import wire, wire_events
from tiermesh.common.errors import InternalError, TiermeshError, Unavailable
from tiermesh.common.rpc_errors import from_rpc_error, has_details
from tiermesh.common.types import Event, Finished, ModelInfo, Prompt, Request, ScoreRequest, Scores
from tiermesh.common.validate import MAX_MESSAGE_BYTES
from tiermesh.v1 import inference_pb2 as pb
from tiermesh.v1 import inference_pb2_grpc

# gRPC's own retries are off: ours know what was shown already. Pings find a dead connection before a deadline does.
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

T = TypeVar("T")


class Calls:
    """Made inside the event loop that will use it. Every method raises TiermeshError."""

    def __init__(self, address: str, api_key: str) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Events of one answer; closing the generator cancels the call, and with it all work upstream."""
        asked = wire.request_to(request)
        asked.together = True
        call = self._stub.Generate(asked, timeout=request.deadline_s, metadata=self._metadata)
        finished = False
        try:
            async for message in call:
                for event in wire_events.events_from(message):
                    finished = isinstance(event, Finished)
                    yield event
        except grpc.RpcError as exc:
            raise self._ours(exc) from exc
        finally:
            call.cancel()
        if not finished:
            raise InternalError("the stream ended before the answer did; ask again")

    async def score(self, request: ScoreRequest) -> Scores:
        """One pass over given tokens."""
        message = wire.score_request_to(request)
        call = self._stub.Score(message, timeout=request.deadline_s, metadata=self._metadata)
        return wire.scores_from(await self._answered(call))

    async def count_tokens(self, prompt: Prompt, model: str, timeout_s: float | None) -> int:
        """Tokens of a prompt."""
        message = pb.CountTokensRequest(prompt=wire.prompt_to(prompt), model=model)
        answer = await self._answered(self._stub.CountTokens(message, timeout=timeout_s, metadata=self._metadata))
        return int(answer.tokens)

    async def models(self, timeout_s: float | None) -> tuple[ModelInfo, ...]:
        """What is served."""
        call = self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout_s, metadata=self._metadata)
        return tuple(wire.model_from(model) for model in (await self._answered(call)).models)

    async def cancel(self, request_id: str, timeout_s: float | None) -> bool:
        """Whether a running request was ended."""
        message = pb.CancelRequest(request_id=request_id)
        call = self._stub.Cancel(message, timeout=timeout_s, metadata=self._metadata)
        return bool((await self._answered(call)).cancelled)

    async def close(self) -> None:
        """Ends the channel and every call on it."""
        await self._channel.close()

    async def _answered(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.RpcError as exc:
            raise self._ours(exc) from exc

    def _ours(self, error: grpc.RpcError) -> TiermeshError:
        """Our error; where nobody listens, in words that say so."""
        ours = from_rpc_error(error)
        if isinstance(ours, Unavailable) and not has_details(error):
            return Unavailable(f"nothing answers at {self._address}; is the service running there?")
        return ours

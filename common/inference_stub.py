"""The asking side of the public API's unary calls, for a hop that passes a request on."""

from __future__ import annotations

import grpc

from tiermesh.v1 import inference_pb2 as pb
from tiermesh.v1 import inference_pb2_grpc

from . import wire
from .rpc_errors import from_rpc_error
from .types import ModelInfo, Prompt, ScoreRequest, Scores

_SHORT_TIMEOUT_S = 10.0
"""Of calls that no model works on."""


async def score(channel: grpc.aio.Channel, request: ScoreRequest, credential: str) -> Scores:
    """Asks the server behind a channel for scores, in the name of the caller. Raises its error as ours."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    metadata = (("authorization", f"Bearer {credential}"),) if credential else ()
    try:
        reply = await stub.Score(wire.score_request_to(request), timeout=request.deadline_s, metadata=metadata)
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc
    return wire.scores_from(reply)


async def count_tokens(channel: grpc.aio.Channel, prompt: Prompt, model: str, credential: str) -> int:
    """Asks the server behind a channel how many tokens a prompt has. Raises its error as ours."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    metadata = (("authorization", f"Bearer {credential}"),) if credential else ()
    request = pb.CountTokensRequest(prompt=wire.prompt_to(prompt), model=model)
    try:
        reply = await stub.CountTokens(request, timeout=_SHORT_TIMEOUT_S, metadata=metadata)
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc
    return reply.tokens


async def models(channel: grpc.aio.Channel, credential: str) -> tuple[ModelInfo, ...]:
    """Asks the server behind a channel what it serves. Raises its error as ours."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    metadata = (("authorization", f"Bearer {credential}"),) if credential else ()
    try:
        reply = await stub.ListModels(pb.ListModelsRequest(), timeout=_SHORT_TIMEOUT_S, metadata=metadata)
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc
    return tuple(wire.model_from(model) for model in reply.models)

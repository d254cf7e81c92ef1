"""The public API over a port that edge node, router and worker each implement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import grpc

from tiermesh.v1 import inference_pb2 as pb
from tiermesh.v1 import inference_pb2_grpc

from . import wire, wire_events
from .errors import InternalError, TiermeshError
from .patient_writer import STALLED_S, PatientWriter
from .rpc_errors import abort
from .telemetry import get_logger
from .types import Event, ModelInfo, Prompt, Request, ScoreRequest, Scores

_log = get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as verified."""

    tenant: str
    """Empty where tenants play no part."""
    credential: str = field(default="", repr=False)
    """What the caller showed, for hops that pass it on; never logged."""


class Answerer(Protocol):
    """What a server does with a request. Every method raises TiermeshError for what it refuses."""

    def authenticate(self, metadata: Mapping[str, str]) -> Caller:
        """The verified caller; raises Unauthenticated or Forbidden."""
        ...

    def generate(self, request: Request, caller: Caller) -> AsyncGenerator[Event | tuple[Event, ...], None]:
        """Started, Tokens…, Finished; several that are ready at once may come as a tuple.

        Closing the generator cancels all work for it, here and above.
        """
        ...

    async def score(self, request: ScoreRequest, caller: Caller) -> Scores:
        """Log-probabilities and own choices."""
        ...

    async def count_tokens(self, prompt: Prompt, model: str, caller: Caller) -> int:
        """Tokens of the prompt."""
        ...

    def models(self) -> tuple[ModelInfo, ...]:
        """What is served."""
        ...

    async def cancel(self, request_id: str, caller: Caller) -> bool:
        """Whether a running request of this tenant was ended."""
        ...


def metadata_of(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
    """Textual metadata of a call, keys in lower case. What came twice is joined, as in HTTP: it is neither of them."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def bearer(metadata: Mapping[str, str]) -> str:
    """The credential of "authorization: Bearer …", or an empty string."""
    scheme, _, credential = metadata.get("authorization", "").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Converts, and turns errors into statuses; nothing else."""

    def __init__(self, answerer: Answerer, stalled_s: float = STALLED_S) -> None:
        self._answerer = answerer
        self._stalled_s = stalled_s

    async def Generate(  # type: ignore[override]
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Streams events until the answer ends; the client going away closes the answerer's generator."""
        try:
            caller = self._answerer.authenticate(metadata_of(context))
            ours = wire.request_from(request, context.time_remaining())
            async with (
                PatientWriter(context, self._stalled_s) as writer,
                aclosing(self._answerer.generate(ours, caller)) as events,
            ):
                async for told in events:
                    ready = told if isinstance(told, tuple) else (told,)
                    if request.together:
                        await writer.write(wire_events.events_to(ready))
                    else:
                        for event in ready:
                            await writer.write(wire_events.event_to(event))
        except TiermeshError as error:
            await abort(context, error)
        except (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError):
            raise
        except Exception:  # noqa: BLE001 - the top of a task; logged
            await _defect(context, "Generate")

    async def Score(self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.ScoreResponse:
        """One pass over given tokens."""

        async def answer() -> pb.ScoreResponse:
            caller = self._answerer.authenticate(metadata_of(context))
            ours = wire.score_request_from(request)
            ours = replace(ours, deadline_s=wire.sooner(context.time_remaining(), ours.deadline_s))
            return wire.scores_to(await self._answerer.score(ours, caller))

        return await guarded(context, "Score", answer())

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CountTokensResponse:
        """Tokens of a prompt."""

        async def answer() -> pb.CountTokensResponse:
            caller = self._answerer.authenticate(metadata_of(context))
            prompt = wire.prompt_from(request.prompt)
            return pb.CountTokensResponse(tokens=await self._answerer.count_tokens(prompt, request.model, caller))

        return await guarded(context, "CountTokens", answer())

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListModelsResponse:
        """What is served here."""

        async def answer() -> pb.ListModelsResponse:
            self._answerer.authenticate(metadata_of(context))
            return pb.ListModelsResponse(models=[wire.model_to(m) for m in self._answerer.models()])

        return await guarded(context, "ListModels", answer())

    async def Cancel(self, request: pb.CancelRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.CancelResponse:
        """Ends a running request of the same tenant."""

        async def answer() -> pb.CancelResponse:
            caller = self._answerer.authenticate(metadata_of(context))
            return pb.CancelResponse(cancelled=await self._answerer.cancel(request.request_id, caller))

        return await guarded(context, "Cancel", answer())


async def guarded(context: grpc.aio.ServicerContext[Any, Any], method: str, answer: Awaitable[T]) -> T:
    """The answer of a unary call, or its error as a status."""
    try:
        return await answer
    except TiermeshError as error:
        await abort(context, error)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception:  # noqa: BLE001 - the top of a task; logged
        await _defect(context, method)
    raise AssertionError("abort raises")


async def _defect(context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
    """Called in an except block: the log gets the details, the client a word."""
    _log.exception("defect", method=method)
    await abort(context, InternalError("an internal error ended this request; the server's log has the details"))

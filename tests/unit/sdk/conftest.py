"""A real gRPC server whose answers are written by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field

import pytest

from tiermesh.common.errors import TiermeshError, Unauthenticated
from tiermesh.common.inference_servicer import Caller, InferenceServicer
from tiermesh.common.rpc import RpcServer
from tiermesh.common.types import (
    Digests,
    Event,
    Finished,
    FinishReason,
    ModelInfo,
    Origin,
    Prompt,
    Quality,
    Request,
    ScoreRequest,
    Scores,
    Started,
    Timing,
    Tokens,
    Usage,
)

KEY = "the-key"


@dataclass
class ScriptedAnswerer:
    """Answers "one two three" unless told to fail; keeps what it was asked."""

    failures: list[TiermeshError] = field(default_factory=list)
    """Raised one per call, before anything else."""
    fail_after: int | None = None
    """Tokens events after which the answer breaks with `break_with`."""
    break_with: TiermeshError | None = None
    stall: bool = False
    """After the first token nothing more comes."""
    requests: list[Request] = field(default_factory=list)
    scored: list[ScoreRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: int = 0

    def authenticate(self, metadata: Mapping[str, str]) -> Caller:
        if metadata.get("authorization") != f"Bearer {KEY}":
            raise Unauthenticated("this key is unknown; check api_key")
        return Caller("demo")

    async def generate(self, request: Request, caller: Caller) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self._fail()
        self.running += 1
        try:
            yield Started(request.request_id, "scripted", request.tier or "standard", request.quality or Quality.EXACT)
            script = [("one ", Origin.EDGE), ("two ", Origin.EDGE), ("three", Origin.CLOUD)]
            for index, (text, origin) in enumerate(script):
                if self.break_with and index == self.fail_after:
                    raise self.break_with
                yield Tokens((index,), text, origin)
                if self.stall:
                    await asyncio.Event().wait()
            timings = (Timing("edge", "decode", 0.25),)
            yield Finished(FinishReason.STOP, Usage(prompt_tokens=2, completion_tokens=3), timings)
        finally:
            self.running -= 1

    async def score(self, request: ScoreRequest, caller: Caller) -> Scores:
        self._fail()
        self.scored.append(request)
        return Scores((1, 2, 3), (-0.5, -1.5), (2, 3), (-0.5, -1.0))

    async def count_tokens(self, prompt: Prompt, model: str, caller: Caller) -> int:
        self._fail()
        return len(prompt)

    def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo("scripted", Digests("a", "b", "c"), 512, 320),)

    async def cancel(self, request_id: str, caller: Caller) -> bool:
        self.cancelled.append(request_id)
        return request_id == "running"

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def answerer() -> ScriptedAnswerer:
    return ScriptedAnswerer()


@pytest.fixture
async def address(answerer: ScriptedAnswerer) -> AsyncIterator[str]:
    server = RpcServer()
    server.add_inference(InferenceServicer(answerer))
    yield await server.start("127.0.0.1:0")
    await server.stop(0)

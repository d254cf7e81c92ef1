"""The worker as callers see it: the public API over one engine. Converts and checks; the engine does the work."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from ..common.errors import Draining, InvalidRequest, ModelNotFound, RequestIdReused, TiermeshError, Unauthenticated
from ..common.inference_servicer import Caller, bearer
from ..common.text import Text
from ..common.types import (
    Event,
    Finished,
    ModelInfo,
    Origin,
    Prompt,
    Quality,
    Request,
    Sampling,
    ScoreRequest,
    Scores,
    Started,
    Tokens,
    Usage,
)
from ..common.validate import Limits, check_prompt_length, check_request, check_score_request
from .engine import Engine
from .metrics import Metrics
from .outputs import Ended, Failed, Output, Produced, Scored
from .request import Job
from .submission import Submission

_LONG_TEXT = 20_000
"""Characters from which a prompt is tokenized in a thread: at 2 million a second this is 10 ms of the event loop."""

_MOST_TOP_LOGPROBS = 1_000_000
"""Of one score request: 4 bytes a number and up to 3 an id, which is what a message still holds."""

_DRAIN_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Served:
    """What one worker serves."""

    info: ModelInfo
    text: Text
    eos_ids: frozenset[int]
    limits: Limits
    token: str | None = None
    """What callers must show; None lets everybody in."""


class Outbox:
    """Outputs of one sequence on their way to its reader; text that waits together goes together."""

    def __init__(self) -> None:
        self._waiting: list[Output] = []
        self._wake = asyncio.Event()

    def put(self, output: Output) -> None:
        """Takes an output; never blocks."""
        last = self._waiting[-1] if self._waiting else None
        if isinstance(output, Produced) and isinstance(last, Produced):
            self._waiting[-1] = Produced(
                last.position,
                last.ids + output.ids,
                last.text + output.text,
                last.logprobs + output.logprobs,
                last.top_logprobs + output.top_logprobs,
            )
        else:
            self._waiting.append(output)
        self._wake.set()

    async def take(self) -> Output:
        """The next output. Raises the error of a `Failed`."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        output = self._waiting.pop(0)
        if isinstance(output, Failed):
            raise output.error
        return output


class Worker:
    """Answers requests with one engine; an `Answerer`."""

    def __init__(self, served: Served, engine: Engine, metrics: Metrics) -> None:
        self.served = served
        self.engine = engine
        self.metrics = metrics
        self.draining = False
        self._running: dict[str, int] = {}

    def authenticate(self, metadata: Mapping[str, str]) -> Caller:
        """Workers know routers, not tenants: a shared token, when one is configured."""
        expected = self.served.token
        if expected is not None and not hmac.compare_digest(bearer(metadata).encode(), expected.encode()):
            raise Unauthenticated("this worker wants its shared token as `authorization: Bearer <token>`")
        return Caller("")

    def accepts(self) -> bool:
        """Whether new requests are taken."""
        return not self.draining

    async def drain(self, grace_s: float) -> None:
        """Takes nothing new and waits, `grace_s` seconds at most, until nothing runs or waits."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.engine.busy:  # noqa: ASYNC110 - it changes on another thread
                    await asyncio.sleep(_DRAIN_POLL_S)

    def admit(self, model: str) -> None:
        """Raises Draining, or ModelNotFound for a model that is not served here."""
        if self.draining:
            raise Draining("this worker is stopping; another one may answer")
        if model not in ("", self.served.info.id):
            raise ModelNotFound(f"this worker serves {self.served.info.id}, not {model}")

    async def generate(self, request: Request, caller: Caller) -> AsyncGenerator[Event, None]:
        """Started, Tokens…, Finished; closing it frees the sequence within one step."""
        self.admit(request.model)
        check_request(request, self.served.limits)
        prompt = await self._encode(request.prompt)
        request_id = request.request_id or uuid.uuid4().hex
        if request_id in self._running:
            raise RequestIdReused("a request with this id is running here; use a new id")
        submission = submission_of(request, prompt, Job.GENERATE, self.served)
        outbox = Outbox()
        number = self.engine.submit(submission, outbox.put)
        self._running[request_id] = number
        outcome = "cancelled"
        try:
            yield Started(request_id, self.served.info.id, self.engine.tiers.named(request.tier), Quality.EXACT)
            while not isinstance(output := await outbox.take(), Ended):
                assert isinstance(output, Produced)
                top = output.top_logprobs
                yield Tokens(output.ids, output.text, Origin.CLOUD, output.logprobs, top_logprobs=top)
            outcome = output.reason.value
            self.metrics.answered(output)
            usage = usage_of(len(prompt), output.answer_tokens, output.cached_prompt_tokens)
            yield Finished(output.reason, usage, output.timings)
        except TiermeshError as error:
            outcome = error.reason
            raise
        finally:
            del self._running[request_id]
            self.engine.cancel(number)
            self.metrics.finished("generate", outcome)

    async def score(self, request: ScoreRequest, caller: Caller) -> Scores:
        """Log-probabilities of given tokens and the model's own choices, in one prefill-like pass."""
        self.admit(request.model)
        check_score_request(request, self.served.limits)
        ids = tuple(await self._encode(request.prompt))
        check_prompt_length(len(ids), 0, self.served.limits)
        if request.answer_start > len(ids):
            raise InvalidRequest.field("answer_start", f"{request.answer_start} is behind the {len(ids)} tokens")
        if len(ids) * request.top_logprobs > _MOST_TOP_LOGPROBS:
            most = f"{_MOST_TOP_LOGPROBS} for all tokens together; score fewer tokens at a time"
            raise InvalidRequest.field("top_logprobs", f"{request.top_logprobs} for {len(ids)} tokens pass {most}")
        submission = Submission(
            Job.SCORE,
            ids,
            sampling=with_seed(request.sampling),
            top_logprobs=request.top_logprobs,
            deadline_s=request.deadline_s,
            answer_start=request.answer_start,
            tier=request.tier,
        )
        outbox = Outbox()
        number = self.engine.submit(submission, outbox.put)
        outcome = "cancelled"
        try:
            output = await outbox.take()
            assert isinstance(output, Scored)
            outcome = "stop"
            return Scores(ids, output.logprobs, output.choices, output.choice_logprobs, output.top_logprobs)
        except TiermeshError as error:
            outcome = error.reason
            raise
        finally:
            self.engine.cancel(number)
            self.metrics.finished("score", outcome)

    async def count_tokens(self, prompt: Prompt, model: str, caller: Caller) -> int:
        """Tokens of a prompt."""
        self.admit(model)
        return len(await self._encode(prompt))

    def models(self) -> tuple[ModelInfo, ...]:
        """The one model."""
        return (self.served.info,)

    async def cancel(self, request_id: str, caller: Caller) -> bool:
        """Ends a running request: its stream finishes with reason CANCELLED."""
        number = self._running.get(request_id)
        if number is not None:
            self.engine.cancel(number)
        return number is not None

    async def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str) and len(prompt) > _LONG_TEXT:
            return await asyncio.to_thread(self.served.text.encode_prompt, prompt)
        return self.served.text.encode_prompt(prompt)


def submission_of(request: Request, prompt: list[int], job: Job, served: Served) -> Submission:
    """A checked request for the engine. Raises InvalidRequest when prompt and answer don't fit together."""
    check_prompt_length(len(prompt), request.max_tokens, served.limits)
    return Submission(
        job,
        tuple(prompt),
        request.max_tokens,
        with_seed(request.sampling),
        request.stop,
        served.eos_ids | frozenset(request.stop_ids),
        request.logprobs,
        request.top_logprobs,
        request.deadline_s,
        tier=request.tier,
    )


def with_seed(sampling: Sampling) -> Sampling:
    """The first hop draws the seed that the client left open; it stays private to the servers."""
    if sampling.greedy or sampling.seed is not None:
        return sampling
    return replace(sampling, seed=secrets.randbits(64))


def usage_of(
    prompt_tokens: int, answer_tokens: int, cached_prompt_tokens: int, asks: int = 0, handed_over: bool = False
) -> Usage:
    """What an answer of this worker took; all of it is billed, what was found computed too."""
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=answer_tokens,
        cached_prompt_tokens=cached_prompt_tokens,
        billed_tokens=prompt_tokens + answer_tokens,
        asks=asks,
        handed_over=handed_over,
    )

"""The asynchronous client: retries, deadlines and cancellation over the plain calls."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar, Unpack

from tiermesh.common import admin_stub
from tiermesh.common.errors import DeadlineExceeded, InternalError, TiermeshError
from tiermesh.common.explanation import Explanation
from tiermesh.common.types import Event, ModelInfo, Request, Scores, Started, Tokens

from .answer import Answer, Gatherer
from .calls import Calls
from .requests import GenerateOptions, PromptLike, ScoreOptions, make_prompt, make_request, make_score_request
from .retry import Retry

T = TypeVar("T")


class AsyncClient:
    """Talks to an edge node, the router or a worker: they speak the same API.

    `timeout_s` bounds calls that have no deadline of their own: counting, listing, cancelling. Connections are plain
    and made at the first call. Every method raises `TiermeshError`, with `.reason` and `.retry_after_s`.
    """

    def __init__(self, address: str, *, api_key: str = "", retry: Retry | None = None, timeout_s: float = 10.0) -> None:
        self.address = address
        self._api_key = api_key
        self._retry = retry or Retry()
        self._timeout_s = timeout_s
        self._open_calls: Calls | None = None

    @property
    def _calls(self) -> Calls:
        if self._open_calls is None:
            self._open_calls = Calls(self.address, self._api_key)
        return self._open_calls

    async def generate(self, prompt: PromptLike, **options: Unpack[GenerateOptions]) -> Answer:
        """The whole answer; cancelling the task cancels the work for it."""
        gatherer = Gatherer()
        async with aclosing(self.stream(prompt, **options)) as events:
            async for event in events:
                if answer := gatherer.add(event):
                    return answer
        raise InternalError("the stream ended before the answer did; ask again")

    def stream(self, prompt: PromptLike, **options: Unpack[GenerateOptions]) -> AsyncGenerator[Event, None]:
        """Started, Tokens…, Finished, as they come.

        Closing the generator (`contextlib.aclosing`, or leaving the loop over it) cancels the work for the answer.
        A call that fails as unavailable is made again, as long as no token has come.
        """
        return self._stream(make_request(prompt, options))

    async def _stream(self, request: Request) -> AsyncGenerator[Event, None]:
        ends = _ends(request.deadline_s)
        failed, started = 0, False
        while True:
            shown = False
            try:
                async with aclosing(self._calls.generate(_with_time_left(request, ends))) as events:
                    async for event in events:
                        shown = shown or isinstance(event, Tokens)
                        if not (isinstance(event, Started) and started):
                            yield event
                        started = started or isinstance(event, Started)
                return
            except TiermeshError as error:
                failed += 1
                if shown or not await self._pause(error, failed, ends):
                    raise

    async def score(self, prompt: PromptLike, **options: Unpack[ScoreOptions]) -> Scores:
        """Log-probabilities of given tokens, and the model's own choices, in one pass."""
        request = make_score_request(prompt, options)
        ends = _ends(request.deadline_s)
        return await self._retried(ends, lambda: self._calls.score(replace(request, deadline_s=_left(ends))))

    async def count_tokens(self, prompt: PromptLike, *, model: str = "") -> int:
        """How many tokens a prompt has."""
        ours, ends = make_prompt(prompt), _ends(self._timeout_s)
        return await self._retried(ends, lambda: self._calls.count_tokens(ours, model, _left(ends)))

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models served at this address."""
        ends = _ends(self._timeout_s)
        return await self._retried(ends, lambda: self._calls.models(_left(ends)))

    async def cancel(self, request_id: str) -> bool:
        """Ends a running request of the same tenant; False when there was none."""
        ends = _ends(self._timeout_s)
        return await self._retried(ends, lambda: self._calls.cancel(request_id, _left(ends)))

    async def explain(self, prompt: PromptLike, *, tenant: str, **options: Unpack[GenerateOptions]) -> Explanation:
        """What a router would do with a tenant's request: for operators, who show their own key as `api_key`.

        A dry run: it tells tier, place, start, worker, or why it would be refused; nothing changes by it.
        """
        return await admin_stub.explain(self.address, tenant, make_request(prompt, options), self._api_key)

    async def close(self) -> None:
        """Ends the connection and every call on it."""
        if self._open_calls is not None:
            calls, self._open_calls = self._open_calls, None
            await calls.close()

    async def _retried(self, ends: float | None, call: Callable[[], Awaitable[T]]) -> T:
        failed = 0
        while True:
            try:
                return await call()
            except TiermeshError as error:
                failed += 1
                if not await self._pause(error, failed, ends):
                    raise

    async def _pause(self, error: TiermeshError, failed: int, ends: float | None) -> bool:
        """Waits before the next call; False when there shall be none."""
        left_s = None if ends is None else ends - time.monotonic()
        wait_s = self._retry.wait_s(error, failed, left_s, random.random())
        if wait_s is None:
            return False
        await asyncio.sleep(wait_s)
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _ends(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else time.monotonic() + deadline_s


def _left(ends: float | None) -> float | None:
    """Seconds left; raises DeadlineExceeded when there are none."""
    if ends is None:
        return None
    left_s = ends - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("the deadline passed before the call was made; allow more time")
    return left_s


def _with_time_left(request: Request, ends: float | None) -> Request:
    return replace(request, deadline_s=_left(ends))

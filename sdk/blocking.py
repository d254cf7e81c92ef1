"""The blocking client: the asynchronous one, run by an event loop in a background thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from tiermesh.common.explanation import Explanation
from tiermesh.common.types import Event, ModelInfo, Scores

from .answer import Answer
from .client import AsyncClient
from .requests import GenerateOptions, PromptLike, ScoreOptions
from .retry import Retry

T = TypeVar("T")


class Client:
    """`AsyncClient` for code that waits; may be shared by threads. Ctrl-C while it waits cancels the work upstream."""

    def __init__(self, address: str, *, api_key: str = "", retry: Retry | None = None, timeout_s: float = 10.0) -> None:
        self._client = AsyncClient(address, api_key=api_key, retry=retry, timeout_s=timeout_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tiermesh-client", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it connects to."""
        return self._client.address

    def generate(self, prompt: PromptLike, **options: Unpack[GenerateOptions]) -> Answer:
        """The whole answer."""
        return self._wait(self._client.generate(prompt, **options))

    def stream(self, prompt: PromptLike, **options: Unpack[GenerateOptions]) -> Generator[Event, None, None]:
        """Started, Tokens…, Finished, as they come; closing the generator or leaving the loop cancels the rest."""
        events = self._client.stream(prompt, **options)

        def each() -> Generator[Event, None, None]:
            try:
                while (event := self._wait(anext_or_none(events))) is not None:
                    yield event
            finally:
                self._wait(events.aclose())

        async def anext_or_none(source: Any) -> Event | None:
            return await anext(source, None)

        return each()

    def score(self, prompt: PromptLike, **options: Unpack[ScoreOptions]) -> Scores:
        """Log-probabilities of given tokens, and the model's own choices, in one pass."""
        return self._wait(self._client.score(prompt, **options))

    def count_tokens(self, prompt: PromptLike, *, model: str = "") -> int:
        """How many tokens a prompt has."""
        return self._wait(self._client.count_tokens(prompt, model=model))

    def models(self) -> tuple[ModelInfo, ...]:
        """The models served at this address."""
        return self._wait(self._client.models())

    def cancel(self, request_id: str) -> bool:
        """Ends a running request of the same tenant; False when there was none."""
        return self._wait(self._client.cancel(request_id))

    def explain(self, prompt: PromptLike, *, tenant: str, **options: Unpack[GenerateOptions]) -> Explanation:
        """What a router would do with a tenant's request; see `AsyncClient.explain`."""
        return self._wait(self._client.explain(prompt, tenant=tenant, **options))

    def close(self) -> None:
        """Ends the connection, every call on it, and the thread."""
        if self._thread.is_alive():
            self._wait(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

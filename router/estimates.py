"""What a request will cost and how long it will take, learned from what finished. Pure; memory is bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from ..common.types import ChatMessage, Prompt
from .averages import Decayed, RunningMedian, RunningQuantile
from .worker_times import WorkerTimes

_FIRST_OUTPUT = 64.0
"""Expected answer tokens before anything was seen."""
_OUTPUT_WEIGHT = 2.0
"""A generated token costs about two prompt tokens: prefill reads many at once, decode one per step."""
_SLOW = 0.9
"""An answer takes no longer than its slow time in so many of the seconds that are worked."""
_MOST = 4096
"""Kinds of answers that are remembered; then the one that was seen last longest ago goes."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Recent(Generic[Key, Value]):
    """A dictionary that forgets what was not put for longest."""

    def __init__(self) -> None:
        self._values: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        self._values.pop(key, None)
        self._values[key] = value
        if len(self._values) > _MOST:
            del self._values[next(iter(self._values))]


class Estimates:
    """Costs in tokens: (prompt − cached prefix) + 2·expected answer. Times: `workers`."""

    def __init__(self) -> None:
        self._outputs: _Recent[tuple[str, str, int], RunningMedian] = _Recent()
        self._cached: _Recent[str, Decayed] = _Recent()
        self._tokens_per_char = Decayed(0.3)
        self._stretch: _Recent[tuple[str, str], RunningQuantile] = _Recent()
        self.workers = WorkerTimes()

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Exact for ids; for text from the ratio seen so far, since the router has no tokenizer."""
        if not isinstance(prompt, str) and prompt and not isinstance(prompt[0], ChatMessage):
            return len(prompt)
        return max(1, round(_chars(prompt) * self._tokens_per_char.value))

    def uncached_tokens(self, tenant: str, prompt_tokens: float) -> float:
        """What a worker will have to read of a prompt, by the share that it had cached of this tenant's so far."""
        cached = self._cached.get(tenant)
        return prompt_tokens * (1.0 - cached.value) if cached else prompt_tokens

    def output_tokens(self, tenant: str, model: str, max_tokens: int) -> float:
        """The median of this tenant's answers by the model with a like max_tokens, never above it."""
        seen = self._outputs.get((tenant, model, max_tokens.bit_length()))
        return min(float(max_tokens), seen.value if seen else _FIRST_OUTPUT)

    def attained(self, prompt: Prompt) -> float:
        """Cost of a conversation's earlier turns, as far as the request tells: messages do, by the answers in them.

        It counts inside the tenant alone, so whoever writes a false history cheats nobody else.
        """
        messages = [] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, ChatMessage)]
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if not answers:
            return 0.0
        earlier = messages[: answers[-1] + 1]
        chars = sum(len(part.content) * (_OUTPUT_WEIGHT if part.role == "assistant" else 1.0) for part in earlier)
        return chars * self._tokens_per_char.value

    def service_s(self, uncached: float, output: float, batches: Mapping[str, float]) -> float:
        """Expected time from dispatch to the last token, the mean over workers, given what each will run at once.

        With an output of one token it is that to the first.
        """
        pool: list[tuple[str | None, float]] = [*batches.items()] or [(None, 1.0)]
        times = (
            self.workers.ttft_s(uncached, name) + max(0.0, output - 1.0) * self.workers.tpot_s(batch, name)
            for name, batch in pool
        )
        return sum(times) / len(pool)

    def slow_s(self, tenant: str, tier: str, service_s: float) -> float:
        """What hardly any of a tenant's answers in a tier takes longer than that was expected to take `service_s`.

        Lower tiers pause and give way to higher ones, and some answers are longer than most are. By tenant, so that
        nobody is refused for what another asks.
        """
        stretch = self._stretch.get((tenant, tier))
        return service_s * max(1.0, stretch.value) if stretch else service_s

    def took(self, tenant: str, tier: str, service_s: float, actual_s: float) -> None:
        """An answer has ended, after so long, that was expected to take `service_s`."""
        if service_s <= 0:
            return
        stretch = self._stretch.get((tenant, tier)) or RunningQuantile(1.0, _SLOW)
        stretch.add(actual_s / service_s, service_s)
        self._stretch.put((tenant, tier), stretch)

    def finished(self, tenant: str, model: str, max_tokens: int, output_tokens: int) -> None:
        """An answer is complete."""
        key = (tenant, model, max_tokens.bit_length())
        outputs = self._outputs.get(key) or RunningMedian(_FIRST_OUTPUT)
        outputs.add(float(output_tokens))
        self._outputs.put(key, outputs)

    def read(self, tenant: str, prompt: Prompt, prompt_tokens: int, cached_tokens: int) -> None:
        """A worker has read a prompt, of which it had some cached; token counts as it gave them."""
        if prompt_tokens <= 0:
            return
        if chars := _chars(prompt):
            self._tokens_per_char.add(prompt_tokens / chars)
        cached = self._cached.get(tenant) or Decayed(0.0)
        cached.add(min(1.0, cached_tokens / prompt_tokens))
        self._cached.put(tenant, cached)


def actual_cost(uncached_tokens: float, output_tokens: float) -> float:
    """Cost of reading a prompt and writing an answer."""
    return uncached_tokens + _OUTPUT_WEIGHT * output_tokens


def _chars(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(message.content) for message in prompt if isinstance(message, ChatMessage))

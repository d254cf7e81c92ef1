"""What a request will cost and how fast work drains, learned from what finished. Pure: time comes as an argument."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from ..common.types import ChatMessage, Prompt

_FIRST_OUTPUT = 64.0
"""Expected answer tokens before anything was seen."""
_OUTPUT_WEIGHT = 2.0
"""A generated token costs about two prompt tokens: prefill reads many at once, decode one per step."""


class RunningMedian:
    """The median of the last values."""

    def __init__(self, first: float, window: int = 64) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._median = first

    @property
    def value(self) -> float:
        """The median, or the first guess when nothing was seen."""
        return self._median

    def add(self, value: float) -> None:
        """One more value."""
        self._values.append(value)
        self._median = median(self._values)


class Decayed:
    """A mean that forgets: a value's weight halves with each `half_life` values."""

    def __init__(self, first: float, half_life: float = 16.0) -> None:
        self.value = first
        self._keep = 0.5 ** (1.0 / half_life)
        self._seen = 0

    def add(self, value: float) -> None:
        """One more value; the first one replaces the guess."""
        keep = self._keep if self._seen else 0.0
        self._seen += 1
        self.value = keep * self.value + (1 - keep) * value


class DrainRate:
    """Cost that finishes per second while work is waiting; a time's weight halves each `half_life_s` of waiting."""

    def __init__(self, half_life_s: float = 10.0) -> None:
        self._half_life_s = half_life_s
        self._cost = 0.0
        self._time_s = 0.0

    @property
    def per_s(self) -> float | None:
        """None until a second of waiting has been seen."""
        return self._cost / self._time_s if self._time_s >= 1.0 and self._cost > 0 else None

    def add(self, cost: float, waited_s: float) -> None:
        """Something of this cost finished; `waited_s` of the time since the last call had work waiting."""
        keep = 0.5 ** (waited_s / self._half_life_s)
        self._cost = keep * self._cost + cost
        self._time_s = keep * self._time_s + waited_s


class Estimates:
    """Costs in tokens: prompt + 2·expected answer. Times: TTFT = a + b·prompt tokens, TPOT a plain mean."""

    def __init__(self) -> None:
        self._outputs: dict[tuple[str, int], RunningMedian] = {}
        self._tokens_per_char = Decayed(0.3)
        self.tpot_s = Decayed(0.02)
        """Mean time per output token."""
        self._ttft_s = Decayed(0.02)
        self._prompt = Decayed(100.0)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Exact for ids; for text from the ratio seen so far, since the router has no tokenizer."""
        if not isinstance(prompt, str) and prompt and not isinstance(prompt[0], ChatMessage):
            return len(prompt)
        return max(1, round(_chars(prompt) * self._tokens_per_char.value))

    def output_tokens(self, tenant: str, max_tokens: int) -> float:
        """The median of this tenant's answers with a like max_tokens, never above it."""
        seen = self._outputs.get((tenant, max_tokens.bit_length()))
        return min(float(max_tokens), seen.value if seen else _FIRST_OUTPUT)

    def cost(self, tenant: str, prompt_tokens: int, max_tokens: int) -> float:
        """Expected cost in tokens."""
        return prompt_tokens + _OUTPUT_WEIGHT * self.output_tokens(tenant, max_tokens)

    def ttft_s(self, prompt_tokens: int) -> float:
        """Expected time from dispatch to the first token: the mean, scaled by the prompt beyond the usual one."""
        return self._ttft_s.value * max(1.0, prompt_tokens / max(self._prompt.value, 1.0))

    def finished(self, tenant: str, max_tokens: int, prompt: Prompt, prompt_tokens: int, output_tokens: int) -> None:
        """An answer is complete; token counts as the worker gave them."""
        outputs = self._outputs.setdefault((tenant, max_tokens.bit_length()), RunningMedian(_FIRST_OUTPUT))
        outputs.add(float(output_tokens))
        chars = _chars(prompt)
        if chars and prompt_tokens:
            self._tokens_per_char.add(prompt_tokens / chars)

    def timed(self, prompt_tokens: int, ttft_s: float, decode_s: float, output_tokens: int) -> None:
        """How long an undisturbed answer took after its dispatch."""
        self._prompt.add(float(prompt_tokens))
        self._ttft_s.add(ttft_s)
        if output_tokens > 1 and math.isfinite(decode_s):
            self.tpot_s.add(decode_s / (output_tokens - 1))


def actual_cost(prompt_tokens: int, output_tokens: int) -> float:
    """Cost of what was done, in the same unit as the estimate."""
    return prompt_tokens + _OUTPUT_WEIGHT * output_tokens


def _chars(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(message.content) for message in prompt if isinstance(message, ChatMessage))

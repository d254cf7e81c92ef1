"""What the engine says about a sequence, in the order in which it happens; exactly one of the last three ends it."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.errors import TiermeshError
from ..common.types import FinishReason, Timing, TopLogprobs


@dataclass(frozen=True, slots=True)
class Produced:
    """More of an answer."""

    position: int
    """Answer index of the first id."""
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Verified:
    """The answer to an ask; fields as in the relay's Verdict."""

    position: int
    stands: int
    next_id: int | None
    choices: tuple[int, ...]
    logprobs: tuple[float, ...]
    compute_s: float
    top_logprobs: tuple[TopLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete."""

    reason: FinishReason
    answer_tokens: int
    timings: tuple[Timing, ...]
    cached_prompt_tokens: int = 0
    """Of the prompt: whose KV was there already."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities and choices of a score request; lengths as in `Scores`."""

    logprobs: tuple[float, ...]
    choices: tuple[int, ...]
    choice_logprobs: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The sequence ended with an error."""

    error: TiermeshError


Output = Produced | Verified | Ended | Scored | Failed
"""`Verified` ends nothing; after a hand-over `Produced` and `Ended` follow it."""

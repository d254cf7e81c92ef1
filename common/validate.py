"""What every server checks before it does work. Pure; all violations of a request are told at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from .errors import InvalidRequest, Violation
from .types import ChatMessage, Prompt, Request, Sampling, ScoreRequest

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""gRPC refuses larger messages on every port."""

MAX_METADATA_BYTES = 16 * 1024
"""gRPC refuses calls with more; keys, ids and traces take a few hundred bytes."""

_MAX_REQUEST_ID = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server accepts."""

    max_context: int
    """Prompt and answer together, in tokens."""
    vocab_size: int
    max_prompt_chars: int = 1 << 20
    """Characters of text; tokenizing more than this would hold up everybody else."""
    max_stops: int = 16
    max_stop_chars: int = 256
    max_biases: int = 1024
    max_top_logprobs: int = 20


def check_request(request: Request, limits: Limits) -> None:
    """Raises InvalidRequest that names every field at fault."""
    _refuse(
        [
            *_prompt(request.prompt, limits),
            *_sampling(request.sampling),
            *_bias(request.sampling, limits),
            *_length(request.max_tokens, limits),
            *_stops(request, limits),
            *_top_logprobs(request.top_logprobs, limits),
            *_needs_logprobs(request),
            *_control(request),
        ]
    )


def check_score_request(request: ScoreRequest, limits: Limits) -> None:
    """Raises InvalidRequest that names every field at fault."""
    faults = [
        *_prompt(request.prompt, limits),
        *_sampling(request.sampling),
        *_bias(request.sampling, limits),
        *_top_logprobs(request.top_logprobs, limits),
        *_deadline(request.deadline_s),
    ]
    if request.answer_start < 1:
        faults.append(Violation("answer_start", "must be at least 1"))
    _refuse(faults)


def check_prompt_length(prompt_tokens: int, max_tokens: int, limits: Limits) -> None:
    """Raises InvalidRequest when prompt and answer do not fit the context together."""
    if prompt_tokens == 0:
        raise InvalidRequest.field("prompt", "has no tokens; give at least one")
    if prompt_tokens + max_tokens > limits.max_context:
        raise InvalidRequest.field(
            "prompt",
            f"{prompt_tokens} prompt tokens and max_tokens {max_tokens} pass the context of {limits.max_context} "
            f"tokens; shorten the prompt or lower max_tokens",
        )


def _refuse(faults: Iterable[Violation]) -> None:
    violations = tuple(faults)
    if violations:
        raise InvalidRequest("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


def _prompt(prompt: Prompt, limits: Limits) -> Iterator[Violation]:
    if not prompt:
        yield Violation("prompt", "is empty; give text, messages or token ids")
    elif isinstance(prompt, str):
        yield from _text("prompt.text", prompt, limits)
    elif isinstance(prompt[0], ChatMessage):
        size = 0
        for i, message in enumerate(prompt):
            assert isinstance(message, ChatMessage)
            size += len(message.content)
            yield from _unicode(f"prompt.messages[{i}].content", message.content)
        if size > limits.max_prompt_chars:
            yield Violation("prompt.messages", f"holds {size} characters; at most {limits.max_prompt_chars}")
    else:
        yield from _ids("prompt.token_ids", (i for i in prompt if isinstance(i, int)), limits.vocab_size)
        if len(prompt) > limits.max_context:
            yield Violation("prompt.token_ids", f"holds {len(prompt)} ids; the context is {limits.max_context}")


def _text(field: str, text: str, limits: Limits) -> Iterator[Violation]:
    if len(text) > limits.max_prompt_chars:
        yield Violation(field, f"holds {len(text)} characters; at most {limits.max_prompt_chars}")
    yield from _unicode(field, text)


def _unicode(field: str, text: str) -> Iterator[Violation]:
    """A lone surrogate can live in a Python string but in no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        yield Violation(field, "is not valid Unicode; remove lone surrogates")


def _ids(field: str, ids: Iterable[int], vocab_size: int) -> Iterator[Violation]:
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        yield Violation(field, f"id {wrong} is outside the vocabulary of {vocab_size}")


_SAMPLING_RANGES = {
    "temperature": (0.0, 10.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


def _sampling(sampling: Sampling) -> Iterator[Violation]:
    for name, (low, high) in _SAMPLING_RANGES.items():
        value = getattr(sampling, name)
        if not (math.isfinite(value) and low <= value <= high):
            yield Violation(f"sampling.{name}", f"must be a number from {low:g} to {high:g}, not {value}")
    if not (math.isfinite(sampling.top_p) and 0 < sampling.top_p <= 1):
        yield Violation("sampling.top_p", f"must be above 0 and at most 1, not {sampling.top_p}")
    if sampling.top_k < 0:
        yield Violation("sampling.top_k", f"must be 0 (off) or more, not {sampling.top_k}")
    if sampling.seed is not None and not 0 <= sampling.seed < 1 << 64:
        yield Violation("sampling.seed", "must fit 64 bits, unsigned")


_BIAS_RANGE = (-100.0, 100.0)


def _bias(sampling: Sampling, limits: Limits) -> Iterator[Violation]:
    field, bias = "sampling.logit_bias", sampling.logit_bias
    if len(bias) > limits.max_biases:
        yield Violation(field, f"holds {len(bias)} ids; at most {limits.max_biases}")
        return
    yield from _ids(field, (i for i, _ in bias), limits.vocab_size)
    if any(before >= after for (before, _), (after, _) in pairwise(bias)):
        yield Violation(field, "must hold each id once, by ascending id")
    low, high = _BIAS_RANGE
    wrong = next((value for _, value in bias if not (math.isfinite(value) and low <= value <= high)), None)
    if wrong is not None:
        yield Violation(field, f"must hold numbers from {low:g} to {high:g}, not {wrong}")


def _top_logprobs(count: int, limits: Limits) -> Iterator[Violation]:
    if not 0 <= count <= limits.max_top_logprobs:
        yield Violation("top_logprobs", f"must be from 0 (off) to {limits.max_top_logprobs}, not {count}")


def _needs_logprobs(request: Request) -> Iterator[Violation]:
    if request.top_logprobs and not request.logprobs:
        yield Violation("top_logprobs", "needs logprobs; turn that on too")


def _length(max_tokens: int, limits: Limits) -> Iterator[Violation]:
    if not 1 <= max_tokens <= limits.max_context:
        yield Violation("max_tokens", f"must be from 1 to {limits.max_context}, not {max_tokens}")


def _stops(request: Request, limits: Limits) -> Iterator[Violation]:
    if len(request.stop) > limits.max_stops:
        yield Violation("stop", f"holds {len(request.stop)} strings; at most {limits.max_stops}")
    for i, stop in enumerate(request.stop):
        if not 1 <= len(stop) <= limits.max_stop_chars:
            yield Violation(f"stop[{i}]", f"must have 1 to {limits.max_stop_chars} characters, not {len(stop)}")
        yield from _unicode(f"stop[{i}]", stop)
    if len(request.stop_ids) > limits.max_stops:
        yield Violation("stop_ids", f"holds {len(request.stop_ids)} ids; at most {limits.max_stops}")
    yield from _ids("stop_ids", request.stop_ids, limits.vocab_size)


def _control(request: Request) -> Iterator[Violation]:
    if request.delta is not None and not (math.isfinite(request.delta) and 0 <= request.delta <= 1):
        yield Violation("delta", f"must be from 0 to 1, not {request.delta}")
    if len(request.request_id) > _MAX_REQUEST_ID:
        yield Violation("request_id", f"has {len(request.request_id)} characters; at most {_MAX_REQUEST_ID}")
    yield from _deadline(request.deadline_s)


def _deadline(deadline_s: float | None) -> Iterator[Violation]:
    if deadline_s is not None and not math.isfinite(deadline_s):
        yield Violation("deadline_ms", "must be a finite number")

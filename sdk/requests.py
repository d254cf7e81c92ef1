"""From what a caller writes to the request that travels."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TypedDict, TypeVar, cast

from tiermesh.common.errors import InvalidRequest
from tiermesh.common.types import CacheControl, ChatMessage, Prompt, Quality, Request, Sampling, ScoreRequest

PromptLike = str | Sequence[ChatMessage | Mapping[str, str]] | Sequence[int]
"""Text; turns of a conversation, as ChatMessage or as {"role": …, "content": …}; or token ids."""

DEFAULT_MAX_TOKENS = 256

E = TypeVar("E", bound=Enum)


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn; the filters apply in this order after the penalties."""

    temperature: float
    """0, the default, takes the most probable token."""
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    """Same seed, same text; 64 bits. Drawn by the first hop when left out."""


class RoutingOptions(TypedDict, total=False):
    """Which model answers, in which tier, until when."""

    model: str
    tier: str
    """A latency class that the tenant may use; its default when left out."""
    deadline_s: float
    """Seconds until the answer must be complete; the tier's own deadline when left out."""


class ScoreOptions(SamplingOptions, RoutingOptions, total=False):
    """Options of `score`; the sampling is that of the model's own choices."""

    answer_start: int
    """Index of the first answer token; the model's own choices are given from here on."""


class GenerateOptions(SamplingOptions, RoutingOptions, total=False):
    """Options of `generate` and `stream`."""

    max_tokens: int
    """256 when left out."""
    stop: str | Sequence[str]
    """Strings that end the answer and are not part of it."""
    stop_ids: Sequence[int]
    logprobs: bool
    quality: Quality | str | None
    """"exact", "bounded" or "edge"; may tighten the tenant's own, never loosen it."""
    delta: float
    """For bounded quality: the share of units that may differ from the cloud's."""
    cache: CacheControl | str
    """"use", "bypass" or "refresh"."""
    request_id: str
    """Names the request for `cancel` and in the logs; unique among those that run. Drawn here when left out."""


_SAMPLING = frozenset(SamplingOptions.__annotations__)


def make_request(prompt: PromptLike, options: GenerateOptions) -> Request:
    """Raises InvalidRequest for what no server could read; TypeError for an option that doesn't exist."""
    rest = {**options}
    sampling = Sampling(**{name: rest.pop(name) for name in _SAMPLING & rest.keys()})  # type: ignore[arg-type]
    quality, stop = rest.pop("quality", None), rest.pop("stop", ())
    fields = {
        "max_tokens": DEFAULT_MAX_TOKENS,
        **rest,
        "quality": None if quality is None else _choice(Quality, quality, "quality"),
        "cache": _choice(CacheControl, rest.get("cache", CacheControl.USE), "cache"),
        "stop": (stop,) if isinstance(stop, str) else tuple(cast(Sequence[str], stop)),
        "stop_ids": tuple(cast(Sequence[int], rest.get("stop_ids", ()))),
        "request_id": rest.get("request_id") or uuid.uuid4().hex,
    }
    return Request(prompt=make_prompt(prompt), sampling=sampling, **fields)  # type: ignore[arg-type]


def make_score_request(prompt: PromptLike, options: ScoreOptions) -> ScoreRequest:
    """Raises InvalidRequest for what no server could read; TypeError for an option that doesn't exist."""
    rest = {**options}
    sampling = Sampling(**{name: rest.pop(name) for name in _SAMPLING & rest.keys()})  # type: ignore[arg-type]
    return ScoreRequest(prompt=make_prompt(prompt), sampling=sampling, **rest)  # type: ignore[arg-type]


def make_prompt(prompt: PromptLike) -> Prompt:
    """Text stays text; a sequence is either turns or ids."""
    if isinstance(prompt, str):
        return prompt
    if all(isinstance(item, int) for item in prompt):
        return tuple(cast(Sequence[int], prompt))
    return tuple(_turn(cast(ChatMessage | Mapping[str, str], item)) for item in prompt)


def _turn(item: ChatMessage | Mapping[str, str]) -> ChatMessage:
    if isinstance(item, ChatMessage):
        return item
    try:
        return ChatMessage(role=item["role"], content=item["content"])  # type: ignore[arg-type]
    except (KeyError, TypeError) as exc:
        raise InvalidRequest.field("prompt", "each turn needs a role and a content") from exc


def _choice(kind: type[E], value: object, field: str) -> E:
    try:
        return kind(value)
    except ValueError as exc:
        choices = ", ".join(str(member.value) for member in kind)
        raise InvalidRequest.field(field, f"must be one of {choices}, not {value!r}") from exc

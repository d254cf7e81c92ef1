"""From what a caller writes to the request that travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TypedDict, TypeVar, cast

from tiermesh.common.draws import draw_hex
from tiermesh.common.errors import InvalidRequest
from tiermesh.common.types import CacheControl, ChatMessage, Prompt, Quality, Request, Sampling, ScoreRequest

PromptLike = str | Sequence[ChatMessage | Mapping[str, str]] | Sequence[int]
"""Text; turns of a conversation, as ChatMessage or as {"role": …, "content": …}; or token ids."""

DEFAULT_MAX_TOKENS = 256

E = TypeVar("E", bound=Enum)


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn; the filters apply in this order after bias and penalties."""

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
    logit_bias: Mapping[int, float]
    """Added to the logits of token ids before all else; from -100 to 100, at most 1024 ids."""


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
    top_logprobs: int
    """How many of the most probable ids come with each place; at most 20."""


class GenerateOptions(SamplingOptions, RoutingOptions, total=False):
    """Options of `generate` and `stream`."""

    max_tokens: int
    """256 when left out."""
    stop: str | Sequence[str]
    """Strings that end the answer and are not part of it."""
    stop_ids: Sequence[int]
    logprobs: bool
    """Whether each token comes with its log-probability. `score` gives those of a prompt."""
    top_logprobs: int
    """How many of the most probable ids come with each token, at most 20; turns `logprobs` on when that is left out."""
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
    sampling = _sampling(rest)
    quality, stop = rest.pop("quality", None), rest.pop("stop", ())
    fields = {
        "max_tokens": DEFAULT_MAX_TOKENS,
        "logprobs": bool(rest.get("top_logprobs")),
        **rest,
        "quality": None if quality is None else _choice(Quality, quality, "quality"),
        "cache": _choice(CacheControl, rest.get("cache", CacheControl.USE), "cache"),
        "stop": (stop,) if isinstance(stop, str) else tuple(cast(Sequence[str], stop)),
        "stop_ids": tuple(cast(Sequence[int], rest.get("stop_ids", ()))),
        "request_id": rest.get("request_id") or draw_hex(16),
    }
    return Request(prompt=make_prompt(prompt), sampling=sampling, **fields)  # type: ignore[arg-type]


def make_score_request(prompt: PromptLike, options: ScoreOptions) -> ScoreRequest:
    """Raises InvalidRequest for what no server could read; TypeError for an option that doesn't exist."""
    rest = {**options}
    return ScoreRequest(prompt=make_prompt(prompt), sampling=_sampling(rest), **rest)  # type: ignore[arg-type]


def _sampling(options: dict[str, object]) -> Sampling:
    """Takes what belongs to the sampling out of the options."""
    fields = {name: options.pop(name) for name in _SAMPLING & options.keys()}
    bias = fields.get("logit_bias", {})
    if not isinstance(bias, Mapping) or not all(isinstance(i, int) for i in bias):
        raise InvalidRequest.field("sampling.logit_bias", "must map token ids to numbers")
    fields["logit_bias"] = tuple(sorted(bias.items()))
    return Sampling(**fields)  # type: ignore[arg-type]


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

"""Proto ⇄ our types: requests, scores, what they share (`wire_events.py` has answers, `wire_frames.py` the relay).

Reading checks only what the wire itself allows; `validate.py` checks the rest.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, cast

from tiermesh.v1 import inference_pb2 as ipb
from tiermesh.v1 import types_pb2 as tpb

from . import types as t
from .errors import InvalidRequest, TiermeshError, Violation, error_of

QUALITY = {
    t.Quality.EXACT: tpb.QUALITY_EXACT,
    t.Quality.BOUNDED: tpb.QUALITY_BOUNDED,
    t.Quality.EDGE: tpb.QUALITY_EDGE,
}
_CACHE = {
    t.CacheControl.USE: tpb.CACHE_CONTROL_USE,
    t.CacheControl.BYPASS: tpb.CACHE_CONTROL_BYPASS,
    t.CacheControl.REFRESH: tpb.CACHE_CONTROL_REFRESH,
}
ORIGIN = {
    t.Origin.EDGE: tpb.ORIGIN_EDGE,
    t.Origin.CLOUD: tpb.ORIGIN_CLOUD,
    t.Origin.CACHE: tpb.ORIGIN_CACHE,
}
FINISH = {
    t.FinishReason.STOP: tpb.FINISH_REASON_STOP,
    t.FinishReason.LENGTH: tpb.FINISH_REASON_LENGTH,
    t.FinishReason.CANCELLED: tpb.FINISH_REASON_CANCELLED,
}
# Keys are enum values of proto, whose stubs give each enum its own int type.
FROM_QUALITY: dict[int, t.Quality] = {v: k for k, v in QUALITY.items()}
_FROM_CACHE: dict[int, t.CacheControl] = {v: k for k, v in _CACHE.items()} | {0: t.CacheControl.USE}
FROM_ORIGIN: dict[int, t.Origin] = {v: k for k, v in ORIGIN.items()}
FROM_FINISH: dict[int, t.FinishReason] = {v: k for k, v in FINISH.items()}

_ROLES = ("system", "user", "assistant")

E = TypeVar("E")


def enum_from(table: dict[int, E], value: int, field: str) -> E:
    """The enum of ours for a proto number; a number that nobody defined is the caller's mistake."""
    if value not in table:
        raise InvalidRequest.field(field, f"unknown value {value}")
    return table[value]


def ms_to(seconds: float | None) -> int:
    """Milliseconds on the wire, where 0 means none; time left never rounds down to none."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def seconds_from(ms: int) -> float | None:
    """Seconds, or None for the 0 that means none."""
    return ms / 1000 if ms else None


def prompt_from(pb: tpb.Prompt) -> t.Prompt:
    """Raises InvalidRequest when the prompt is missing or a role is unknown."""
    kind = pb.WhichOneof("input")
    if kind == "text":
        return pb.text
    if kind == "token_ids":
        return tuple(pb.token_ids.ids)
    if kind == "messages":
        for i, message in enumerate(pb.messages.messages):
            if message.role not in _ROLES:
                raise InvalidRequest.field(f"prompt.messages[{i}].role", f"must be one of {', '.join(_ROLES)}")
        return tuple(
            t.ChatMessage(cast(Literal["system", "user", "assistant"], m.role), m.content) for m in pb.messages.messages
        )
    raise InvalidRequest.field("prompt", "is missing; give text, messages or token_ids")


def prompt_to(prompt: t.Prompt) -> tpb.Prompt:
    """Raises InvalidRequest for text that is no valid Unicode or ids that fit no uint32."""
    try:
        if isinstance(prompt, str):
            return tpb.Prompt(text=prompt)
        if prompt and isinstance(prompt[0], t.ChatMessage):
            messages = [tpb.ChatMessage(role=m.role, content=m.content) for m in prompt]
            return tpb.Prompt(messages=tpb.ChatMessages(messages=messages))
        return tpb.Prompt(token_ids=tpb.TokenIds(ids=cast(tuple[int, ...], prompt)))
    except (ValueError, TypeError) as exc:
        raise InvalidRequest.field("prompt", "must be valid Unicode text, messages, or ids from 0 to 2^32-1") from exc


def sampling_from(pb: tpb.Sampling) -> t.Sampling:
    """Fields that proto leaves at 0 where 0 means "off" become our own off values."""
    return t.Sampling(
        temperature=pb.temperature,
        top_p=pb.top_p or 1.0,
        top_k=pb.top_k,
        min_p=pb.min_p,
        repetition_penalty=pb.repetition_penalty or 1.0,
        presence_penalty=pb.presence_penalty,
        frequency_penalty=pb.frequency_penalty,
        seed=pb.seed if pb.HasField("seed") else None,
        logit_bias=tuple(sorted(pb.logit_bias.items())),
    )


def sampling_to(sampling: t.Sampling) -> tpb.Sampling:
    """Raises InvalidRequest where a number does not fit its field."""
    try:
        return tpb.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=sampling.seed,
            logit_bias=dict(sampling.logit_bias),
        )
    except (ValueError, TypeError) as exc:
        raise InvalidRequest.field("sampling", f"has a value that does not fit: {exc}") from exc


def sooner(one_s: float | None, other_s: float | None) -> float | None:
    """The smaller of two times, either of which may be missing."""
    return one_s if other_s is None or (one_s is not None and one_s < other_s) else other_s


def request_from(pb: ipb.GenerateRequest, left_s: float | None = None) -> t.Request:
    """`left_s` is what the deadline of the call itself leaves. Raises InvalidRequest for what the types can't hold."""
    return t.Request(
        prompt=prompt_from(pb.prompt),
        max_tokens=pb.max_tokens,
        model=pb.model,
        sampling=sampling_from(pb.sampling),
        stop=tuple(pb.stop),
        stop_ids=tuple(pb.stop_ids),
        logprobs=pb.logprobs,
        top_logprobs=pb.top_logprobs,
        tier=pb.tier,
        deadline_s=sooner(left_s, seconds_from(pb.deadline_ms)),
        quality=enum_from(FROM_QUALITY, pb.quality, "quality") if pb.quality else None,
        delta=pb.delta if pb.HasField("delta") else None,
        cache=enum_from(_FROM_CACHE, pb.cache, "cache"),
        request_id=pb.request_id,
    )


def request_to(request: t.Request) -> ipb.GenerateRequest:
    """Raises InvalidRequest where a value does not fit its field."""
    prompt, sampling = prompt_to(request.prompt), sampling_to(request.sampling)
    try:
        return ipb.GenerateRequest(
            prompt=prompt,
            model=request.model,
            sampling=sampling,
            max_tokens=request.max_tokens,
            stop=request.stop,
            stop_ids=request.stop_ids,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
            tier=request.tier,
            deadline_ms=ms_to(request.deadline_s),
            quality=QUALITY[request.quality] if request.quality else tpb.QUALITY_UNSPECIFIED,
            delta=request.delta,
            cache=_CACHE[request.cache],
            request_id=request.request_id,
        )
    except (ValueError, TypeError) as exc:
        raise InvalidRequest(f"a field of the request does not fit: {exc}") from exc


def usage_from(pb: tpb.Usage) -> t.Usage:
    """Field by field."""
    return t.Usage(
        prompt_tokens=pb.prompt_tokens,
        completion_tokens=pb.completion_tokens,
        cached_prompt_tokens=pb.cached_prompt_tokens,
        billed_tokens=pb.billed_tokens,
        asks=pb.asks,
        alone=pb.alone,
        handed_over=pb.handed_over,
        cached=pb.cached,
    )


def usage_to(usage: t.Usage) -> tpb.Usage:
    """Field by field."""
    return tpb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        billed_tokens=usage.billed_tokens,
        asks=usage.asks,
        alone=usage.alone,
        handed_over=usage.handed_over,
        cached=usage.cached,
    )


def timings_from(pbs: Any) -> tuple[t.Timing, ...]:
    """A repeated field of Timing."""
    return tuple(t.Timing(pb.hop, pb.stage, pb.duration_ms / 1000) for pb in pbs)


def timings_to(timings: tuple[t.Timing, ...]) -> list[tpb.Timing]:
    """A repeated field of Timing."""
    return [tpb.Timing(hop=x.hop, stage=x.stage, duration_ms=x.duration_s * 1000) for x in timings]


def top_logprobs_from(pbs: Any) -> tuple[t.TopLogprobs, ...]:
    """A repeated field of TopLogprobs; ids without a partner are dropped."""
    return tuple(tuple(zip(pb.ids, pb.logprobs, strict=False)) for pb in pbs)


def top_logprobs_to(places: tuple[t.TopLogprobs, ...]) -> list[tpb.TopLogprobs]:
    """A repeated field of TopLogprobs."""
    return [tpb.TopLogprobs(ids=[i for i, _ in top], logprobs=[x for _, x in top]) for top in places]


def score_request_from(pb: ipb.ScoreRequest) -> t.ScoreRequest:
    """answer_start 0 on the wire means 1."""
    return t.ScoreRequest(
        prompt=prompt_from(pb.prompt),
        answer_start=pb.answer_start or 1,
        model=pb.model,
        sampling=sampling_from(pb.sampling),
        tier=pb.tier,
        deadline_s=seconds_from(pb.deadline_ms),
        top_logprobs=pb.top_logprobs,
    )


def score_request_to(request: t.ScoreRequest) -> ipb.ScoreRequest:
    """Raises InvalidRequest where a value does not fit its field."""
    prompt, sampling = prompt_to(request.prompt), sampling_to(request.sampling)
    try:
        return ipb.ScoreRequest(
            prompt=prompt,
            model=request.model,
            answer_start=request.answer_start,
            sampling=sampling,
            tier=request.tier,
            deadline_ms=ms_to(request.deadline_s),
            top_logprobs=request.top_logprobs,
        )
    except (ValueError, TypeError) as exc:
        raise InvalidRequest(f"a field of the request does not fit: {exc}") from exc


def scores_from(pb: ipb.ScoreResponse) -> t.Scores:
    """Field by field."""
    top = top_logprobs_from(pb.top_logprobs)
    return t.Scores(tuple(pb.token_ids), tuple(pb.logprobs), tuple(pb.choices), tuple(pb.choice_logprobs), top)


def scores_to(scores: t.Scores) -> ipb.ScoreResponse:
    """Field by field."""
    return ipb.ScoreResponse(
        token_ids=scores.token_ids,
        logprobs=scores.logprobs,
        choices=scores.choices,
        choice_logprobs=scores.choice_logprobs,
        top_logprobs=top_logprobs_to(scores.top_logprobs),
    )


def digests_from(pb: tpb.Digests) -> t.Digests:
    """Field by field."""
    return t.Digests(pb.model, pb.tokenizer, pb.template)


def digests_to(digests: t.Digests) -> tpb.Digests:
    """Field by field."""
    return tpb.Digests(model=digests.model, tokenizer=digests.tokenizer, template=digests.template)


def model_from(pb: tpb.ModelInfo) -> t.ModelInfo:
    """Field by field."""
    return t.ModelInfo(pb.id, digests_from(pb.digests), pb.max_context, pb.vocab_size)


def model_to(model: t.ModelInfo) -> tpb.ModelInfo:
    """Field by field."""
    return tpb.ModelInfo(
        id=model.id,
        digests=digests_to(model.digests),
        max_context=model.max_context,
        vocab_size=model.vocab_size,
    )


def error_from(pb: tpb.Error) -> TiermeshError:
    """The error of a session, as ours."""
    violations = [Violation(v.field, v.description) for v in pb.violations]
    retry_after_s = seconds_from(pb.retry_after_ms)
    return error_of(pb.reason, pb.code, pb.message, violations=violations, retry_after_s=retry_after_s)


def error_to(error: TiermeshError) -> tpb.Error:
    """The error of a session, for the wire."""
    return tpb.Error(
        code=error.grpc_code,
        reason=error.reason,
        message=error.message,
        retry_after_ms=ms_to(error.retry_after_s),
        violations=[tpb.FieldViolation(field=v.field, description=v.description) for v in error.violations],
    )

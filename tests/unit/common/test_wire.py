"""What goes over the wire comes back as it was; what the wire can't hold is the caller's error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.common import frames as f
from tiermesh.common import types as t
from tiermesh.common import wire, wire_events, wire_frames
from tiermesh.common.errors import InvalidRequest, Overloaded, TiermeshError
from tiermesh.v1 import inference_pb2, relay_pb2, types_pb2

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
F32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=20)
IDS = st.lists(U32, max_size=5).map(tuple)
SECONDS = st.integers(1, 10**9).map(lambda ms: ms / 1000)
PROMPTS = (
    TEXT
    | st.lists(U32, min_size=1, max_size=5).map(tuple)
    | st.lists(st.builds(t.ChatMessage, st.sampled_from(["system", "user", "assistant"]), TEXT), min_size=1).map(tuple)
)
POSITIVE = st.floats(0.125, 8, width=32)
BIASES = st.dictionaries(U32, F32, max_size=3).map(lambda bias: tuple(sorted(bias.items())))
SAMPLINGS = st.builds(t.Sampling, F32, POSITIVE, U32, F32, POSITIVE, F32, F32, st.none() | U64, BIASES)
REQUESTS = st.builds(
    t.Request,
    prompt=PROMPTS,
    max_tokens=U32,
    model=TEXT,
    sampling=SAMPLINGS,
    stop=st.lists(TEXT, max_size=3).map(tuple),
    stop_ids=IDS,
    logprobs=st.booleans(),
    top_logprobs=U32,
    tier=TEXT,
    deadline_s=st.none() | SECONDS,
    quality=st.none() | st.sampled_from(t.Quality),
    delta=st.none() | st.floats(0, 1),
    cache=st.sampled_from(t.CacheControl),
    request_id=TEXT,
)
DIGESTS = st.builds(t.Digests, TEXT, TEXT, TEXT)
MODELS = st.builds(t.ModelInfo, TEXT, DIGESTS, U32, U32)
USAGES = st.builds(t.Usage, U32, U32, U32, U32, U32, U32, st.booleans(), st.booleans())
# Binary fractions, so that the way through milliseconds and back is exact.
DURATIONS = st.integers(0, 2**20).map(lambda n: n / 64)
TIMINGS = st.lists(st.builds(t.Timing, TEXT, TEXT, DURATIONS), max_size=3).map(tuple)
LOGPROBS = st.lists(F32, max_size=3).map(tuple)
TOP = st.lists(st.lists(st.tuples(U32, F32), max_size=3).map(tuple), max_size=3).map(tuple)
UP_FRAMES = st.one_of(
    st.builds(f.Hello, TEXT, DIGESTS, U32),
    st.builds(f.Open, U64, U32, REQUESTS, st.sampled_from(f.SessionMode), TEXT, IDS, U64, st.none() | SECONDS),
    st.builds(f.Ask, U64, U32, U32, IDS, IDS, st.booleans()),
    st.builds(f.Close, U64, U32, st.sampled_from(f.CloseReason)),
    st.builds(f.UsageReport, TEXT, TEXT, TEXT, U32, U32, U32, U32, U32, U32, st.booleans(), *[U32] * 6),
)
TENANTS = st.builds(
    f.TenantPolicy,
    TEXT,
    st.lists(TEXT, max_size=2).map(tuple),
    st.lists(TEXT, max_size=2).map(tuple),
    st.sampled_from(t.Quality),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
    SECONDS,
)
DOWN_FRAMES = st.one_of(
    st.builds(f.Welcome, TEXT, st.lists(MODELS, max_size=2).map(tuple), U32),
    st.builds(
        f.Policy,
        st.lists(TENANTS, max_size=2).map(tuple),
        st.lists(st.builds(f.TierPolicy, TEXT, SECONDS, SECONDS), max_size=2).map(tuple),
        SECONDS,
        st.binary(max_size=16),
    ),
    st.builds(f.Accepted, U64, U32, U32, TEXT, TEXT),
    st.builds(f.RelayTokens, U64, U32, U32, IDS, TEXT, LOGPROBS, st.sampled_from(t.Origin), TOP),
    st.builds(f.Verdict, U64, U32, U32, U32, st.none() | U32, IDS, LOGPROBS, DURATIONS, TOP),
    st.builds(f.RelayFinished, U64, U32, st.sampled_from(t.FinishReason), USAGES, TIMINGS),
    st.builds(f.Load, U32, U32, U32, F32, DURATIONS, st.booleans()),
)
EVENTS = st.one_of(
    st.builds(t.Started, TEXT, TEXT, TEXT, st.sampled_from(t.Quality)),
    st.builds(t.Tokens, IDS, TEXT, st.sampled_from(t.Origin), LOGPROBS, st.booleans(), TOP),
    st.builds(t.Finished, st.sampled_from(t.FinishReason), USAGES, TIMINGS),
)


@given(REQUESTS)
def test_requests_survive(request: t.Request) -> None:
    pb = inference_pb2.GenerateRequest.FromString(wire.request_to(request).SerializeToString())
    assert wire.request_from(pb) == request


@given(st.builds(t.ScoreRequest, PROMPTS, st.integers(1, 2**32 - 1), TEXT, SAMPLINGS, TEXT, st.none() | SECONDS, U32))
def test_score_requests_survive(request: t.ScoreRequest) -> None:
    pb = inference_pb2.ScoreRequest.FromString(wire.score_request_to(request).SerializeToString())
    assert wire.score_request_from(pb) == request


@given(st.builds(t.Scores, IDS, LOGPROBS, IDS, LOGPROBS, TOP))
def test_scores_survive(scores: t.Scores) -> None:
    pb = inference_pb2.ScoreResponse.FromString(wire.scores_to(scores).SerializeToString())
    assert wire.scores_from(pb) == scores


@given(EVENTS)
def test_events_survive(event: t.Event) -> None:
    pb = inference_pb2.GenerateResponse.FromString(wire_events.event_to(event).SerializeToString())
    assert wire_events.event_from(pb) == event


@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_events_survive_together(events: list[t.Event]) -> None:
    pb = inference_pb2.GenerateResponse.FromString(wire_events.events_to(events).SerializeToString())
    assert wire_events.events_from(pb) == tuple(events)


@given(UP_FRAMES)
def test_frames_upward_survive(frame: f.UpFrame) -> None:
    pb = relay_pb2.UpFrame.FromString(wire_frames.up_to(frame).SerializeToString())
    assert wire_frames.up_from(pb) == frame


@given(DOWN_FRAMES)
def test_frames_downward_survive(frame: f.DownFrame) -> None:
    pb = relay_pb2.DownFrame.FromString(wire_frames.down_to(frame).SerializeToString())
    assert wire_frames.down_from(pb) == frame


def test_a_session_error_keeps_class_and_delay() -> None:
    sent = f.SessionError(3, 2, Overloaded("wait", retry_after_s=1.5))
    got = wire_frames.down_from(wire_frames.down_to(sent))
    assert isinstance(got, f.SessionError)
    assert (type(got.error), got.error.message, got.error.retry_after_s) == (Overloaded, "wait", 1.5)


@given(st.binary(max_size=200))
def test_bytes_from_anybody_raise_only_our_errors(data: bytes) -> None:
    try:
        pb = relay_pb2.UpFrame.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own refusal comes before us
        return
    try:
        wire_frames.up_from(pb)
    except TiermeshError:
        wire_frames.session_of(pb)


def test_time_left_never_becomes_no_deadline() -> None:
    assert wire.request_to(t.Request("x", 1, deadline_s=0.0001)).deadline_ms == 1


def test_proto_defaults_mean_off() -> None:
    assert wire.sampling_from(types_pb2.Sampling()) == t.Sampling()


@pytest.mark.parametrize(
    "request_",
    [
        t.Request("\ud800", 1),
        t.Request((2**32,), 1),
        t.Request("x", -1),
        t.Request("x", 1, sampling=t.Sampling(seed=2**64)),
        t.Request("x", 1, sampling=t.Sampling(top_k=-1)),
        t.Request("x", 1, sampling=t.Sampling(logit_bias=((-1, 1.0),))),
        t.Request("x", 1, stop_ids=(-1,)),
    ],
)
def test_what_does_not_fit_is_the_callers_error(request_: t.Request) -> None:
    with pytest.raises(InvalidRequest):
        wire.request_to(request_)


def test_an_unknown_role_is_named() -> None:
    pb = types_pb2.Prompt(messages=types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(role="robot", content="x")]))
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.role"):
        wire.prompt_from(pb)

"""Bad input is refused with the field's name; good input passes."""

from __future__ import annotations

import math

import pytest

from tiermesh.common.errors import InvalidRequest
from tiermesh.common.types import ChatMessage, Request, Sampling, ScoreRequest
from tiermesh.common.validate import Limits, check_prompt_length, check_request, check_score_request

LIMITS = Limits(max_context=64, vocab_size=100, max_prompt_chars=1000)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request("", 1), "prompt"),
        (Request((), 1), "prompt"),
        (Request((100,), 1), "prompt.token_ids"),
        (Request(tuple([1] * 65), 1), "prompt.token_ids"),
        (Request("x" * 1001, 1), "prompt.text"),
        (Request("\ud800", 1), "prompt.text"),
        (Request((ChatMessage("user", "\ud800"),), 1), "prompt.messages[0].content"),
        (Request((ChatMessage("user", "x" * 1001),), 1), "prompt.messages"),
        (Request("x", 0), "max_tokens"),
        (Request("x", 65), "max_tokens"),
        (Request("x", 1, sampling=Sampling(temperature=math.nan)), "sampling.temperature"),
        (Request("x", 1, sampling=Sampling(temperature=-1)), "sampling.temperature"),
        (Request("x", 1, sampling=Sampling(top_p=math.inf)), "sampling.top_p"),
        (Request("x", 1, sampling=Sampling(top_p=0)), "sampling.top_p"),
        (Request("x", 1, sampling=Sampling(min_p=1.5)), "sampling.min_p"),
        (Request("x", 1, sampling=Sampling(seed=-1)), "sampling.seed"),
        (Request("x", 1, sampling=Sampling(logit_bias=((100, 1.0),))), "sampling.logit_bias"),
        (Request("x", 1, sampling=Sampling(logit_bias=((1, 101.0),))), "sampling.logit_bias"),
        (Request("x", 1, sampling=Sampling(logit_bias=((1, math.nan),))), "sampling.logit_bias"),
        (Request("x", 1, sampling=Sampling(logit_bias=((1, 1.0), (1, 2.0)))), "sampling.logit_bias"),
        (Request("x", 1, sampling=Sampling(logit_bias=tuple((i, 1.0) for i in range(1025)))), "sampling.logit_bias"),
        (Request("x", 1, logprobs=True, top_logprobs=21), "top_logprobs"),
        (Request("x", 1, logprobs=True, top_logprobs=-1), "top_logprobs"),
        (Request("x", 1, top_logprobs=1), "top_logprobs"),
        (Request("x", 1, stop=("",)), "stop[0]"),
        (Request("x", 1, stop=("a",) * 17), "stop"),
        (Request("x", 1, stop_ids=(100,)), "stop_ids"),
        (Request("x", 1, delta=math.nan), "delta"),
        (Request("x", 1, deadline_s=math.nan), "deadline_ms"),
        (Request("x", 1, request_id="r" * 129), "request_id"),
    ],
)
def test_each_fault_is_named(request_: Request, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request(request_, LIMITS)
    assert [v.field for v in caught.value.violations] == [field]
    assert field in caught.value.message


def test_all_faults_come_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request(Request("", 0, stop=("",)), LIMITS)
    assert {v.field for v in caught.value.violations} == {"prompt", "max_tokens", "stop[0]"}


def test_good_requests_pass() -> None:
    check_request(Request("x", 64, sampling=Sampling(1.0, 0.9, 5, 0.1, 1.1, 1.0, 1.0, 2**64 - 1), stop=("a",)), LIMITS)
    check_request(Request((ChatMessage("user", "hi"),), 1), LIMITS)
    check_request(
        Request("x", 1, sampling=Sampling(logit_bias=((0, -100.0), (99, 0.5))), logprobs=True, top_logprobs=20), LIMITS
    )
    check_score_request(ScoreRequest((1, 2, 3), top_logprobs=20), LIMITS)


def test_prompt_and_answer_share_the_context() -> None:
    check_prompt_length(60, 4, LIMITS)
    with pytest.raises(InvalidRequest, match="64"):
        check_prompt_length(60, 5, LIMITS)
    with pytest.raises(InvalidRequest):
        check_prompt_length(0, 1, LIMITS)


def test_a_score_needs_a_token_before_the_answer() -> None:
    with pytest.raises(InvalidRequest, match="answer_start"):
        check_score_request(ScoreRequest((1,), answer_start=0), LIMITS)

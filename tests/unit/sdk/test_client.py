from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from tiermesh import (
    AsyncClient,
    ChatMessage,
    DeadlineExceeded,
    Finished,
    InvalidRequest,
    Origin,
    Overloaded,
    Quality,
    Retry,
    Started,
    TiermeshError,
    Tokens,
    Unauthenticated,
    Unavailable,
    Violation,
)
from tiermesh.requests import make_request

FAST = Retry(attempts=3, base_s=0.001, cap_s=0.002)


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, "the condition never came true"
        await asyncio.sleep(0.002)


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address, api_key="the-key", retry=FAST) as client:
        yield client


def test_a_bias_is_a_mapping() -> None:
    request = make_request("x", {"logit_bias": {9: 1.0, 2: -1}, "top_logprobs": 2})
    assert (request.sampling.logit_bias, request.logprobs) == (((2, -1), (9, 1.0)), True)
    assert not make_request("x", {"logprobs": False, "top_logprobs": 2}).logprobs, "for the server to refuse"
    for wrong in ([(1, 2.0)], {"a": 1.0}):
        with pytest.raises(InvalidRequest, match="logit_bias"):
            make_request("x", {"logit_bias": wrong})  # type: ignore[typeddict-item]


async def test_an_answer_has_text_spans_and_facts(client: AsyncClient, answerer: Any) -> None:
    answer = await client.generate("hello", max_tokens=7, tier="realtime", quality="bounded", temperature=0.5, seed=3)
    assert (answer.text, answer.token_ids) == ("one two three", (0, 1, 2))
    assert [(s.origin, s.tokens) for s in answer.spans] == [(Origin.EDGE, 2), (Origin.CLOUD, 1)]
    assert (answer.model, answer.tier, answer.quality) == ("scripted", "realtime", Quality.BOUNDED)
    assert answer.usage.completion_tokens == 3
    assert answer.timings[0].duration_s == 0.25
    assert 0 < answer.ttft_s <= answer.total_s
    (request,) = answerer.requests
    assert (request.max_tokens, request.sampling.temperature, request.sampling.seed) == (7, 0.5, 3)
    assert request.request_id == answer.request_id != ""


async def test_turns_and_ids_travel_as_such(client: AsyncClient, answerer: Any) -> None:
    await client.generate([{"role": "user", "content": "hi"}])
    await client.generate([ChatMessage("user", "hi")])
    await client.generate([5, 6])
    prompts = [request.prompt for request in answerer.requests]
    assert prompts == [(ChatMessage("user", "hi"),), (ChatMessage("user", "hi"),), (5, 6)]


async def test_events_come_in_order(client: AsyncClient) -> None:
    kinds = [type(event) async for event in client.stream("hello")]
    assert kinds == [Started, Tokens, Tokens, Tokens, Finished]


async def test_unavailable_is_tried_again_before_the_first_token(client: AsyncClient, answerer: Any) -> None:
    answerer.failures = [Unavailable("not yet"), Unavailable("not yet")]
    assert (await client.generate("hello")).text == "one two three"
    assert len({request.request_id for request in answerer.requests}) == 1
    assert len(answerer.requests) == 3


async def test_a_second_try_starts_only_once(client: AsyncClient, answerer: Any) -> None:
    answerer.break_with, answerer.fail_after = Unavailable("gone"), 0
    kinds: list[type] = []

    async def read() -> None:
        async for event in client.stream("hello"):
            kinds.append(type(event))

    with pytest.raises(Unavailable):
        await read()
    assert kinds == [Started]
    assert len(answerer.requests) == 3


async def test_attempts_are_bounded(client: AsyncClient, answerer: Any) -> None:
    answerer.failures = [Unavailable("not yet")] * 9
    with pytest.raises(Unavailable):
        await client.generate("hello")
    assert len(answerer.requests) == 3


async def test_nothing_is_tried_again_after_a_token(client: AsyncClient, answerer: Any) -> None:
    answerer.break_with, answerer.fail_after = Unavailable("gone"), 1
    with pytest.raises(Unavailable):
        await client.generate("hello")
    assert len(answerer.requests) == 1


async def test_overload_is_told_with_its_delay(client: AsyncClient, answerer: Any) -> None:
    answerer.failures = [Overloaded("no room", retry_after_s=1.5)]
    with pytest.raises(Overloaded) as caught:
        await client.generate("hello")
    assert (caught.value.reason, caught.value.retry_after_s) == ("OVERLOADED", 1.5)
    assert len(answerer.requests) == 1


async def test_violations_arrive(client: AsyncClient, answerer: Any) -> None:
    answerer.failures = [InvalidRequest.field("max_tokens", "must be at least 1")]
    with pytest.raises(InvalidRequest) as caught:
        await client.generate("hello")
    assert caught.value.violations == (Violation("max_tokens", "must be at least 1"),)


async def test_a_wrong_key_is_told(address: str) -> None:
    async with AsyncClient(address, api_key="wrong") as client:
        with pytest.raises(Unauthenticated, match="api_key"):
            await client.models()


async def test_the_deadline_travels_and_ends_the_call(client: AsyncClient, answerer: Any) -> None:
    answerer.stall = True
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await client.generate("hello", deadline_s=0.3)
    assert time.monotonic() - began < 3
    assert 0 < answerer.requests[0].deadline_s <= 0.3
    await until(lambda: answerer.running == 0)


async def test_waiting_never_outlives_the_deadline(answerer: Any, address: str) -> None:
    answerer.failures = [Unavailable("not yet", retry_after_s=30)] * 3
    async with AsyncClient(address, api_key="the-key") as client:
        with pytest.raises(Unavailable):
            await client.generate("hello", deadline_s=1)
    assert len(answerer.requests) == 1


async def test_closing_the_stream_cancels(client: AsyncClient, answerer: Any) -> None:
    answerer.stall = True
    async with aclosing(client.stream("hello")) as events:
        async for event in events:
            if isinstance(event, Tokens):
                break
        assert answerer.running == 1
    await until(lambda: answerer.running == 0)


async def test_cancelling_the_task_cancels(client: AsyncClient, answerer: Any) -> None:
    answerer.stall = True
    task = asyncio.create_task(client.generate("hello"))
    await until(lambda: answerer.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: answerer.running == 0)


async def test_unary_calls(client: AsyncClient, answerer: Any) -> None:
    answerer.failures = [Unavailable("not yet")]
    scores = await client.score("abc", answer_start=2, deadline_s=5)
    assert (scores.token_ids, scores.logprobs) == ((1, 2, 3), (-0.5, -1.5))
    assert answerer.scored[0].answer_start == 2
    assert await client.count_tokens("abcd") == 4
    assert (await client.models())[0].id == "scripted"
    assert await client.cancel("running")
    assert not await client.cancel("another")


async def test_nobody_at_the_address() -> None:
    async with AsyncClient("127.0.0.1:1", retry=Retry(attempts=2, base_s=0.001)) as client:
        with pytest.raises(Unavailable) as caught:
            await client.generate("hello", deadline_s=5)
    assert caught.value.reason == "UNAVAILABLE"


@pytest.mark.parametrize(
    "options", [{"quality": "perfect"}, {"cache": "sometimes"}, {"top_k": -1}, {"max_tokens": 2**40}]
)
async def test_what_no_server_could_read_is_refused_here(client: AsyncClient, options: Any, answerer: Any) -> None:
    with pytest.raises(InvalidRequest):
        await client.generate("hello", **options)
    assert not answerer.requests


async def test_an_unknown_option_is_a_mistake_of_the_program(client: AsyncClient) -> None:
    with pytest.raises(TypeError, match="tempature"):
        await client.generate("hello", tempature=1)  # type: ignore[call-arg]


async def test_too_large_a_message_says_so(client: AsyncClient) -> None:
    with pytest.raises(TiermeshError) as caught:
        await client.generate("x" * (17 * 2**20))
    assert caught.value.reason == "REQUEST_TOO_LARGE"

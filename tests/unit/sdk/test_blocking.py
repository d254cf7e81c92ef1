from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tiermesh import Client, Finished, Overloaded, Started, Tokens


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, api_key="the-key") as client:
        yield client


async def test_the_blocking_client_gives_the_same_answer(client: Client) -> None:
    answer = await asyncio.to_thread(client.generate, "hello", max_tokens=7)
    assert answer.text == "one two three"
    assert (await asyncio.to_thread(client.score, "abc")).logprobs == (-0.5, -1.5)
    assert await asyncio.to_thread(client.count_tokens, "abcd") == 4
    assert len(await asyncio.to_thread(client.models)) == 1
    assert await asyncio.to_thread(client.cancel, "running")


async def test_the_blocking_stream_gives_events(client: Client) -> None:
    kinds = await asyncio.to_thread(lambda: [type(event) for event in client.stream("hello")])
    assert kinds == [Started, Tokens, Tokens, Tokens, Finished]


async def test_leaving_the_loop_cancels(client: Client, answerer: Any) -> None:
    answerer.stall = True

    def leave() -> None:
        for event in client.stream("hello"):
            if isinstance(event, Tokens):
                break

    await asyncio.to_thread(leave)
    ends = time.monotonic() + 5
    while answerer.running:
        assert time.monotonic() < ends
        await asyncio.sleep(0.002)


async def test_errors_keep_their_facts(client: Client, answerer: Any) -> None:
    answerer.failures = [Overloaded("no room", retry_after_s=2)]
    with pytest.raises(Overloaded) as caught:
        await asyncio.to_thread(client.generate, "hello")
    assert caught.value.retry_after_s == 2


async def test_closing_leaves_no_thread(address: str) -> None:
    client = Client(address, api_key="the-key")
    await asyncio.to_thread(client.models)
    await asyncio.to_thread(client.close)
    await asyncio.to_thread(client.close)
    assert "tiermesh-client" not in {thread.name for thread in threading.enumerate()}

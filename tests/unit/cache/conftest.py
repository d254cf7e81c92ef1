"""Stores on a Redis of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tiermesh.cache.port import Observer
from tiermesh.cache.redis_store import RedisStore
from tiermesh.common.clock import MonotonicClock
from tiermesh.common.secret import Secret

SECRET = Secret(bytes(32))


class Seen(Observer):
    """Remembers what a store told."""

    def __init__(self) -> None:
        self.evictions: list[str] = []
        self.leases: list[str] = []
        self.calls: list[str] = []

    def evicted(self, why: str, count: int = 1) -> None:
        self.evictions += [why] * count

    def leased(self, outcome: str) -> None:
        self.leases.append(outcome)

    def called(self, outcome: str) -> None:
        self.calls.append(outcome)


@pytest.fixture
def seen() -> Seen:
    return Seen()


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - a connection has no event to wait for
            await asyncio.sleep(0.005)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits for a condition, with a deadline."""
    return until


@pytest.fixture
async def open_store(seen: Seen) -> AsyncIterator[Callable[..., Awaitable[RedisStore]]]:
    """Opens a store on a Redis and waits until it is connected. Budgets are wide unless a test is about them."""
    async with AsyncExitStack() as stack:

        async def opened(url: str, *, wait: bool = True, **settings: Any) -> RedisStore:
            given = {"budget_s": 5.0, "lease_s": 5.0, **settings}
            store = RedisStore(url, SECRET, MonotonicClock(), seen, **given)
            store.start()
            stack.push_async_callback(store.close)
            if wait:
                await until(lambda: store.line.up)
            return store

        yield opened

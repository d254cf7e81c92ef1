"""Shared limits on a Redis of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from tiermesh.common.clock import MonotonicClock
from tiermesh.common.config import default_mesh
from tiermesh.common.secret import Secret
from tiermesh.router.shared_limits import SharedLimits


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - a connection has no event to wait for
            await asyncio.sleep(0.002)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits for a condition, with a deadline."""
    return until


@pytest.fixture
async def open_shared() -> AsyncIterator[Callable[..., Awaitable[SharedLimits]]]:
    """Opens one router's side of shared limits. The budget is wide unless a test is about it."""
    async with AsyncExitStack() as stack:

        async def opened(
            url: str, *, me: str = "one", limit: int = 4, wait: bool = True, budget_s: float = 5.0, lease_s: float = 2.0
        ) -> Any:
            config = replace(default_mesh({}).cache, url=url, budget_s=budget_s, lease_s=lease_s)
            shared = SharedLimits(config, Secret(bytes(32)), MonotonicClock(), me, lambda _: limit)
            shared.start()
            stack.push_async_callback(shared.close)
            if wait:
                await until(lambda: shared.line.up)
            return shared

        yield opened

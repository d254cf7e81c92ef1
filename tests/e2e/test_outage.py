"""The router goes away under an edge node, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tiermesh import AsyncClient, Retry, Unavailable
from tiermesh.process import Service, ServiceProcess

PROMPT = "switch off the fan in the nursery\n"


@asynccontextmanager
async def service(name: str, **keys: str) -> AsyncIterator[str]:
    """The address of a running service; stopped at the end."""
    keys = {"LISTEN": "127.0.0.1:0", "METRICS": "null", **keys}
    environ = {f"TIERMESH_{name.upper()}__{key}": value for key, value in keys.items()}
    process = await ServiceProcess.start(Service(name, (), environ), lambda line: None)
    try:
        yield await process.healthy(120)
    finally:
        await process.stop(15)


async def refused(client: AsyncClient) -> bool:
    """Whether an answer that must be verified is refused."""
    try:
        await client.generate(PROMPT, max_tokens=16, quality="exact", cache="bypass")
    except Unavailable:
        return True
    return False


async def until_refused(client: AsyncClient, expected: bool, within_s: float = 30) -> None:
    ends = time.monotonic() + within_s
    while await refused(client) is not expected:
        assert time.monotonic() < ends, f"refused never became {expected}"
        await asyncio.sleep(0.05)


async def test_the_edge_answers_without_the_router_and_heals_with_it() -> None:
    async with AsyncExitStack() as stack:
        workers = f"['{await stack.enter_async_context(service('cloud'))}']"
        first_router = AsyncExitStack()
        router = await first_router.enter_async_context(service("router", WORKERS=workers))
        edge = await stack.enter_async_context(service("edge", UPSTREAM=router))
        client = AsyncClient(edge, api_key="demo-key", retry=Retry(attempts=1))
        await stack.enter_async_context(client)
        before = await client.generate(PROMPT, max_tokens=16, quality="exact", cache="bypass")
        await first_router.aclose()
        await until_refused(client, True)

        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await client.generate(PROMPT, max_tokens=16, quality="exact", cache="bypass")
        assert caught.value.message
        assert time.monotonic() - began < 5, "a refusal must not hang"
        bounded = await client.generate(PROMPT, max_tokens=16, quality="bounded", delta=0.0, cache="bypass")
        assert {span.origin.value for span in bounded.spans} == {"edge"}
        assert any(span.degraded for span in bounded.spans), "what was not verified must say so"
        alone = await client.generate(PROMPT, max_tokens=16, quality="edge", cache="bypass")
        assert alone.token_ids == bounded.token_ids

        await stack.enter_async_context(service("router", WORKERS=workers, LISTEN=router))
        await until_refused(client, False)
        after = await client.generate(PROMPT, max_tokens=16, quality="exact", cache="bypass")
        assert after.text == before.text
        assert not any(span.degraded for span in after.spans)

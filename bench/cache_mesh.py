"""Routers with the caches that are compared, as processes; Redis, and a worker that answers at once."""

from __future__ import annotations

import shutil
import socket
import tempfile
from asyncio import create_subprocess_exec, sleep
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import redis.asyncio

from ..common.config import DEMO_KEY
from ..common.errors import Unavailable
from ..common.frames import Close, DownFrame, Hello, Load, Open, RelayFinished, RelayTokens, UpFrame, Welcome
from ..common.keys import key_hash
from ..common.relay_server import RelayServicer
from ..common.rpc import RpcServer
from ..common.types import Digests, FinishReason, ModelInfo, Usage
from ..process import ServiceProcess
from .processes import configured_router

_NO_LIMIT = 10**9


class _Prompter:
    """Answers each request of one router at once, with as many ids as it allows."""

    def __init__(self, send: Callable[[DownFrame], None]) -> None:
        self._send = send

    def receive(self, frame: UpFrame) -> None:
        """One frame of tokens and the end; what closes needs nothing."""
        if not isinstance(frame, Open):
            assert isinstance(frame, Close), "nothing else is sent for a client's own requests"
            return
        count = frame.request.max_tokens
        ids = tuple(range(10, 10 + count))
        self._send(RelayTokens(frame.session, frame.attempt, 0, ids, " word" * count))
        self._send(RelayFinished(frame.session, frame.attempt, FinishReason.STOP, Usage(8, count)))

    async def closed(self) -> None:
        """Nothing runs."""


def _connect(hello: Hello, metadata: Mapping[str, str], send: Callable[[DownFrame], None]) -> _Prompter:
    model = ModelInfo("prompt", Digests("m", "t", "c"), max_context=4096, vocab_size=4096)
    send(Welcome("prompt", (model,)))
    send(Load(64, 0, 0, 1.0, 0.001))
    return _Prompter(send)


@asynccontextmanager
async def prompt_worker() -> AsyncIterator[str]:
    """A worker without a model, in this process: its address."""
    server = RpcServer()
    server.add_relay(RelayServicer(_connect))
    try:
        yield await server.start("127.0.0.1:0")
    finally:
        await server.stop(0)


@asynccontextmanager
async def redis_server() -> AsyncIterator[str]:
    """A Redis of its own, without persistence: its URL. Raises Unavailable where there is none."""
    if shutil.which("redis-server") is None:
        raise Unavailable("this benchmark needs redis-server 7: install it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder)
        process = await create_subprocess_exec("redis-server", *options, stdout=DEVNULL, stderr=DEVNULL)
        url = f"redis://127.0.0.1:{port}/0"
        try:
            await _answers(url)
            yield url
        finally:
            process.kill()
            await process.wait()


async def _answers(url: str) -> None:
    async with redis.asyncio.Redis.from_url(url) as client:
        for _ in range(200):
            try:
                await client.ping()
                return
            except redis.RedisError:
                await sleep(0.05)
    raise Unavailable("redis-server did not start")


@asynccontextmanager
async def router(worker: str, cache_url: str, ttl_s: float = 3600.0) -> AsyncIterator[str]:
    """A router that no limit holds up, before one worker: its address."""
    async with router_process(worker, cache_url, ttl_s) as process:
        yield process.addresses["listening"]


@asynccontextmanager
async def router_process(worker: str, cache_url: str, ttl_s: float = 3600.0) -> AsyncIterator[ServiceProcess]:
    """The same, as the process that it is."""
    names = ("requests_per_minute", "tokens_per_minute", "concurrent", "queued")
    limits = dict.fromkeys(names, _NO_LIMIT)
    values: dict[str, dict[str, object]] = {
        "tenants": {"demo": {"api_keys": [key_hash(DEMO_KEY)], "limits": limits, "cache": {"ttl_s": ttl_s}}},
        "cache": {"url": cache_url},
        "router": {"workers": [worker]},
    }
    async with configured_router(values) as process:
        yield process

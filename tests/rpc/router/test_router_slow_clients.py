"""Clients that don't read, or a byte a second: their streams end, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tiermesh.common.errors import ReaderStalled
from tiermesh.common.rpc import channel
from tiermesh.common.types import CacheControl, Finished, Request, Tokens
from tiermesh.v1 import inference_pb2_grpc

LENGTH = 100
NARROW = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
"""A client that lets a server send a KiB ahead of what it reads."""


def request(prompt: str) -> Request:
    return Request(prompt, LENGTH, cache=CacheControl.BYPASS)


def text(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Tokens))


@asynccontextmanager
async def dripping(address: str) -> AsyncIterator[str]:
    """A way to the router that brings requests there at once, and of answers a KiB, then a byte a second."""
    host, _, port = address.rpartition(":")
    tasks: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, slowly: bool) -> None:
        ahead = 1024
        try:
            while data := await source.read(1 if slowly and not ahead else 1024):
                sink.write(data)
                await sink.drain()
                ahead = max(0, ahead - len(data))
                if slowly and not ahead:
                    await asyncio.sleep(1)
        finally:
            sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up = socket.socket()
        up.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        up.setblocking(False)
        await asyncio.get_running_loop().sock_connect(up, (host, int(port)))
        back, forth = await asyncio.open_connection(sock=up, limit=1024)
        tasks.update({asyncio.create_task(pump(reader, forth, False)), asyncio.create_task(pump(back, writer, True))})

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read(stream: AsyncIterator[Any], seen: list[Any]) -> None:
    async for event in stream:
        seen.append(event)


async def test_a_client_that_stops_reading_is_ended_by_name(toy: Any, start_worker: Any, start_router: Any) -> None:
    """More is sent, 12 MB, than the sockets between would take."""
    worker = await start_worker(padding="x" * 1000)
    router = await start_router(worker, stalled_s=0.4)
    async with grpc.aio.insecure_channel(router.address, options=NARROW) as chan:
        idle = toy.Client(inference_pb2_grpc.InferenceServiceStub(chan)).stream(request("idle"))
        assert await anext(idle)
        assert len(text(await router.client.events(request("other")))) > LENGTH * 1000
        await toy.until(lambda: router.running == 0 and router.service._answers.running == 0)
        assert len(router.service._answers._flights) == 0
        seen: list[Any] = []
        with pytest.raises(ReaderStalled, match=r"nothing of this stream was read for 0.4 s"):
            await read(idle, seen)
        assert len(text(seen)) < 100_000, "what was not taken in time is gone"
    assert isinstance((await router.client.events(request("again")))[-1], Finished)


async def test_clients_that_read_a_byte_a_second_hold_nothing_up(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    """More is sent, 12 MB, than the sockets between would take."""
    worker = await start_worker(padding="x" * 10_000, step_s=0.001, slots=32)
    router = await start_router(worker, stalled_s=0.4)
    async with dripping(router.address) as address, channel(address) as chan:
        slow = toy.Client(inference_pb2_grpc.InferenceServiceStub(chan))
        tasks = [asyncio.create_task(slow.events(request(f"slow {i}"))) for i in range(12)]
        await toy.until(lambda: worker.running == 12)
        others = [asyncio.create_task(router.client.events(request(f"other {i}"))) for i in range(4)]
        for task in others:
            assert len(text(await task)) > LENGTH * 10_000
        await toy.until(lambda: router.running == 0 and router.service._answers.running == 0)
        assert len(router.service._answers._flights) == 0
        assert router.sample("requests_total", tier="standard", outcome="abandoned") > 0
        assert not any(task.done() for task in tasks), "the clients know nothing of it yet"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        begun = time.monotonic()
        await router.server.stop(0)
        assert time.monotonic() - begun < 5, "neither do they hold up its end"

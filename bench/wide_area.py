"""A relay on loopback that makes TCP connections as slow and lossy as a wide area's; `wide_area_path.py` says how.

Timers must be finer than epoll's milliseconds: run it on `precise_loop`, whose `select` waits for microseconds.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from contextlib import suppress
from types import TracebackType
from typing import Self

from .wide_area_path import Conditions, OneWay

_CHUNK_BYTES = 64 * 1024


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop that wakes up on time to some 0.1 ms."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class WideAreaLink:
    """`async with WideAreaLink("host:port", conditions, seed) as link`: connect to `link.address` instead.

    Both directions of every connection have the conditions; the n-th connection loses the same segments at each run
    with the same seed, if it carries the same ones.
    """

    def __init__(self, target: str, conditions: Conditions, seed: int) -> None:
        self.address = ""
        """ "127.0.0.1:port" once entered."""
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._conditions = conditions
        self._rng = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._paths: list[OneWay] = []

    @property
    def lost(self) -> int:
        """Segments lost so far, both ways."""
        return sum(path.lost for path in self._paths)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths = [OneWay(self._conditions, random.Random(self._rng.getrandbits(64))) for _ in range(2)]
        self._paths += paths
        connection = asyncio.create_task(self._connect(reader, writer, paths))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, paths: list[OneWay]) -> None:
        """Both directions of one connection, until either side ends it or breaks."""
        up, down = paths
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_carry(reader, far_writer, up))
                ways.create_task(_carry(far_reader, writer, down))
            for end in writers:
                end.close()
                await end.wait_closed()
        except* OSError:
            pass
        finally:
            for end in writers:
                end.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: OneWay) -> None:
    """One direction, until its sender ended it and all has arrived."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    reading = asyncio.create_task(_read(reader, path, news))
    try:
        while not reading.done() or path.next_s() is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(path.next_s()):
                    await news.wait()
            news.clear()
            if arrived := path.receive(loop.time()):
                writer.write(arrived)
                await writer.drain()
        writer.write_eof()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read(reader: asyncio.StreamReader, path: OneWay, news: asyncio.Event) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            path.send(asyncio.get_running_loop().time(), data)
            news.set()
    finally:
        news.set()

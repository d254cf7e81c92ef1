"""One connection to Redis on which commands go out as they are given, and replies are handed over as they arrive.

redis-py opens, authenticates and ends the connection. In between, a task, two timers and four turns of the event loop
for each exchange took 37 of the 155 µs of CPU that a miss costs in a process that does nothing else; here it is a call
to send, and one when the reply arrives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import hiredis
from redis.asyncio import Connection, Redis
from redis.connection import DefaultParser
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import InvalidResponse, RedisError

_NOT_YET = object()

Answered = Callable[[Any], None]
"""Is given a command's reply, or the exception that stands for it."""


class Wire(asyncio.Protocol):
    """Replies come in the order of the commands, none of which waits for another's."""

    def __init__(self, connection: Connection, lost: Callable[[Exception], None]) -> None:
        """Takes over a connection that stands; `lost` is told, once, when it doesn't any more."""
        self._connection = connection
        self._lost: Callable[[Exception], None] | None = lost
        self._waiting: deque[Answered] = deque()
        self._replies = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=_NOT_YET,
        )
        writer = connection._writer
        assert writer is not None
        self._transport = writer.transport
        self._theirs = self._transport.get_protocol()
        """That of redis-py; it waits for the end of the connection."""
        self._transport.set_protocol(self)

    @property
    def stands(self) -> bool:
        """Whether commands may be sent."""
        return self._lost is not None

    @classmethod
    async def open(cls, client: Redis, lost: Callable[[Exception], None]) -> Wire:
        """A new connection, as the client is configured. Raises RedisError or OSError."""
        connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()
            return cls(connection, lost)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    def send(self, words: tuple[Any, ...], answered: Answered) -> None:
        """Sends a command. Not to be called any more once `lost` was."""
        self._waiting.append(answered)
        self._transport.write(hiredis.pack_command(words))

    async def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """What Redis replies to commands. Raises RedisError or OSError."""
        if not self.stands:
            raise Lost("the connection is gone")
        loop = asyncio.get_running_loop()
        replies: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
        for words, reply in zip(commands, replies, strict=True):
            self.send(words, partial(_settle, reply))
        got = await asyncio.gather(*replies)
        for one in got:
            if isinstance(one, Exception):
                raise one
        return got

    def fail(self, error: Exception) -> None:
        """Gives the connection up, with all that is under way on it."""
        self._ended(error)
        self._transport.abort()

    async def close(self) -> None:
        """Hangs up, once what was sent has left; nobody is told. What is under way fails."""
        self._lost = None
        self._ended(Lost("the connection is being closed"))
        with suppress(RedisError, OSError, TimeoutError):
            await self._connection.disconnect()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Replies, or parts of them."""
        self._replies.feed(data)
        while self.stands:
            try:
                reply = self._replies.gets()
            except InvalidResponse as error:
                self.fail(error)
                return
            if reply is _NOT_YET:
                return
            if isinstance(reply, Lost) or not self._waiting:  # Redis is loading, or says what nobody asked
                self.fail(reply if isinstance(reply, Lost) else InvalidResponse("a reply too many"))
                return
            self._waiting.popleft()(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """By the other side, by an error, or because it was closed here."""
        self._theirs.connection_lost(exc)
        self._ended(exc or Lost("Redis closed the connection"))

    def _ended(self, error: Exception) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            lost(error)
        while self._waiting:
            self._waiting.popleft()(error)


def _settle(waiting: asyncio.Future[Any], reply: Any) -> None:
    if not waiting.done():
        waiting.set_result(reply)

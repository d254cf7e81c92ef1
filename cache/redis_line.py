"""One connection to Redis that all calls share: what waits while an answer is under way goes out together.

A call has a time budget. One that overruns it is a miss for its caller and goes on by itself: to cancel it would cost
the connection, and a lease that it still brings home must be given back. The breaker keeps calls away from a server
that is gone or slow, and trials of our own, paid by no request, find out when it is well again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio import Connection, Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..common.clock import Clock
from ..common.telemetry import get_logger
from .breaker import Breaker
from .port import Observer
from .redis_scripts import ALL, Script

_log = get_logger()

_HARD_S = 1.0
"""After which an answer, or a connection, is not waited for any more."""
_BATCH = 128
_TURNS = 4
"""Turns of the event loop that an answer which may lie in the socket already gets, once its time is over."""
_QUIET_S = 10.0
"""Between two lines of the log about calls that were refused."""

Late = Callable[[Any], None]


class _Call:
    """One script to run."""

    def __init__(self, words: tuple[Any, ...], late: Late | None) -> None:
        self.words = words
        self.late = late
        self.reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answered(self, reply: Any) -> None:
        """The reply is here: for the caller, or, if it waits no more, for whoever clears up after it."""
        if not self.reply.done():
            self.reply.set_result(reply)
        elif self.late is not None and reply is not None:
            self.late(reply)


class Line:
    """The connection. `call` never raises."""

    def __init__(
        self,
        client: Redis,
        budget_s: float,
        clock: Clock,
        observer: Observer,
        *,
        scripts: Sequence[Script] = ALL,
        name: str = "cache",
    ) -> None:
        self._texts = [script.text for script in scripts]
        self._name = name
        """For the log."""
        self.breaker = Breaker()
        self._client = client
        self._budget_s = budget_s
        self._clock = clock
        self._observer = observer
        self._waiting: deque[_Call] = deque()
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self._tell_from = float("-inf")

    @property
    def up(self) -> bool:
        """Whether calls are made now, on a connection that stands."""
        return self._connection is not None and self.breaker.closed

    async def call(
        self,
        script: Script,
        keys: Sequence[str] = (),
        arguments: Sequence[Any] = (),
        *,
        budget_s: float | None = None,
        late: Late | None = None,
    ) -> Any:
        """What a script answers, or None when it doesn't in time; `late` is then given what comes after all."""
        return await self.post(script, keys, arguments, budget_s=budget_s, late=late)

    def post(
        self,
        script: Script,
        keys: Sequence[str] = (),
        arguments: Sequence[Any] = (),
        *,
        budget_s: float | None = None,
        late: Late | None = None,
    ) -> Awaitable[Any]:
        """As `call`, but stands in the line as soon as this returns; what it returns is to be awaited at once."""
        call: _Call | None = None
        if self.breaker.closed:
            call = _Call(("EVALSHA", script.sha, len(keys), *keys, *arguments), late)
            self._waiting.append(call)
            self._wake.set()
        return self._answer(call, budget_s or self._budget_s)

    async def _answer(self, call: _Call | None, budget_s: float) -> Any:
        if call is None:
            self._observer.called("not_tried")
            return None
        timer = asyncio.get_running_loop().call_later(budget_s, self._overrun, call, _TURNS)
        try:
            reply = await call.reply
        finally:
            timer.cancel()
        if reply is not None:
            self._observer.called("in_time")
            if self.breaker.closed:
                self.breaker.succeeded()
        return reply

    async def run(self) -> None:
        """Sends and reads until cancelled."""
        try:
            while True:
                if not self.breaker.closed or self._connection is None:
                    await self._mend()
                await self._wake.wait()
                self._wake.clear()
                while self._waiting and self._connection is not None:
                    await self._exchange([self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))])
        finally:
            self._fail([])
            await self._hang_up()

    def _overrun(self, call: _Call, turns: int) -> None:
        if call.reply.done():
            return
        if turns:
            asyncio.get_running_loop().call_soon(self._overrun, call, turns - 1)
            return
        call.reply.set_result(None)
        self._observer.called("late")
        self._failed()

    def _failed(self) -> None:
        was_closed = self.breaker.closed
        self.breaker.failed(self._clock.now())
        if was_closed and not self.breaker.closed:
            self._opened("slow")

    def _opened(self, why: str) -> None:
        _log.warning(f"{self._name}_away", reason=why, detail="nothing is shared until Redis is well again")
        self._wake.set()

    async def _exchange(self, calls: list[_Call]) -> None:
        try:
            async with asyncio.timeout(_HARD_S):
                replies = await self._send([call.words for call in calls])
                if any(isinstance(reply, NoScriptError) for reply in replies):
                    await self._load()
                    replies = await self._send([call.words for call in calls])
        except (RedisError, OSError, TimeoutError) as error:
            self._trip(error)
            self._fail(calls)
            await self._hang_up()
            return
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, ResponseError):
                self._refused(reply)
                call.answered(None)
            else:
                call.answered(reply)

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        connection = self._connection
        assert connection is not None
        await connection.send_packed_command([hiredis.pack_command(words) for words in commands])
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies

    def _refused(self, error: ResponseError) -> None:
        """Redis answered, and in time: nothing for the breaker. A replica without its master says so at each call."""
        self._observer.called("failed")
        now = self._clock.now()
        if now >= self._tell_from:
            self._tell_from = now + _QUIET_S
            _log.warning(f"{self._name}_refused", detail=str(error)[:200])

    def _trip(self, error: Exception) -> None:
        if self.breaker.closed:
            self.breaker.trip(self._clock.now())
            self._opened(type(error).__name__)

    def _fail(self, calls: list[_Call]) -> None:
        lost = [*calls, *self._waiting]
        self._waiting.clear()
        for call in lost:
            self._observer.called("failed")
            call.answered(None)

    async def _mend(self) -> None:
        """Until the server answers within the budget again."""
        while not self.up:
            away = not self.breaker.closed
            if away:
                await asyncio.sleep(self.breaker.trial_in_s(self._clock.now()))
                self.breaker.trial()
            try:
                took_s = await self._try()
            except (RedisError, OSError, TimeoutError) as error:
                await self._hang_up()
                self._trip(error)
            else:
                if took_s <= self._budget_s or not away:
                    self.breaker.succeeded()
                    if away:
                        _log.info(f"{self._name}_back")
                    return
            if away:
                self.breaker.failed(self._clock.now())

    async def _try(self) -> float:
        """Connects if need be; how long an answer takes, in seconds."""
        async with asyncio.timeout(_HARD_S):
            if self._connection is None:
                self._connection = self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
                await self._connection.connect()
            await self._load()
            asked = self._clock.now()
            await self._send([("PING",)])
            return self._clock.now() - asked

    async def _load(self) -> None:
        for reply in await self._send([("SCRIPT", "LOAD", text) for text in self._texts]):
            if isinstance(reply, ResponseError):
                raise reply

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(_HARD_S):
                    await connection.disconnect()

"""One connection to Redis that all calls share, and on which none waits for another's answer.

A call has a time budget. One that overruns it is a miss for its caller and goes on by itself: to cancel it would cost
the connection, and a lease that it still brings home must be given back. The breaker keeps calls away from a server
that is gone or slow, and trials of our own, paid by no request, find out when it is well again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..common.clock import Clock
from ..common.telemetry import get_logger
from .breaker import Breaker
from .port import Observer
from .redis_scripts import ALL, Script
from .redis_wire import Wire

_log = get_logger()

_HARD_S = 1.0
"""After which an answer that is late already, or a connection, is not waited for any more."""
_TURNS = 4
"""Turns of the event loop that an answer which may lie in the socket already gets, once its time is over."""
_QUIET_S = 10.0
"""Between two lines of the log about calls that were refused."""

Late = Callable[[Any], None]


class _Call:
    """One script to run."""

    __slots__ = ("again", "answered", "late", "reply", "timer", "words")

    def __init__(self, words: tuple[Any, ...], late: Late | None, reply: asyncio.Future[Any]) -> None:
        self.words = words
        self.late = late
        self.reply = reply
        """The caller's: done when the call was answered, came too late, or is not awaited any more."""
        self.timer: asyncio.TimerHandle | None = None
        self.answered = False
        self.again = False
        """Whether it was sent again, because Redis did not know the script."""


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
        self._loads = [("SCRIPT", "LOAD", script.text) for script in scripts]
        self._name = name
        """For the log."""
        self.breaker = Breaker()
        self._client = client
        self._budget_s = budget_s
        self._clock = clock
        self._observer = observer
        self._waiting: deque[_Call] = deque()
        """Until there is a connection, as at the start."""
        self._wire: Wire | None = None
        """Stands while the breaker is closed: that it is lost opens it."""
        self._proven: Wire | None = None
        """The last on which the server has answered us."""
        self._wake = asyncio.Event()
        self._loading = False
        self._tell_from = float("-inf")

    @property
    def up(self) -> bool:
        """Whether calls are made now, on a connection that stands and on which the server answers."""
        return self._wire is not None and self._wire is self._proven and self.breaker.closed

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
    ) -> asyncio.Future[Any]:
        """As `call`, but stands in the line as soon as this returns, awaited or not."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        if not self.breaker.closed:
            self._observer.called("not_tried")
            reply.set_result(None)
            return reply
        call = _Call(("EVALSHA", script.sha, len(keys), *keys, *arguments), late, reply)
        call.timer = loop.call_later(budget_s or self._budget_s, self._overrun, call, _TURNS)
        if self._wire is None:
            self._waiting.append(call)
        else:
            self._send(self._wire, call)
        return reply

    async def run(self) -> None:
        """Connects, and again whenever there is need to, until cancelled."""
        try:
            while True:
                self._wake.clear()
                if not self.up:
                    await self._mend()
                await self._wake.wait()
        finally:
            await self._hang_up()
            for call in self._waiting:
                self._answered(call, ConnectionError("the line is closed"))

    def _send(self, wire: Wire, call: _Call) -> None:
        wire.send(call.words, lambda reply: self._answered(call, reply))

    def _answered(self, call: _Call, reply: Any) -> None:
        """A call has come back, or never will: for the caller, or, if it waits no more, for whoever clears up."""
        if isinstance(reply, NoScriptError) and self._wire is not None and not call.again:
            call.again = True
            self._load(self._wire)
            self._send(self._wire, call)
            return
        call.answered = True
        if call.timer is not None:
            call.timer.cancel()
        if isinstance(reply, Exception):
            self._observer.called("failed")
            if isinstance(reply, ResponseError):
                self._refused(reply)
            reply = None
        if not call.reply.done():
            if reply is not None:
                self._observer.called("in_time")
                if self.breaker.closed:
                    self.breaker.succeeded()
            call.reply.set_result(reply)
        elif call.late is not None and reply is not None:
            call.late(reply)

    def _overrun(self, call: _Call, turns: int) -> None:
        if call.answered:
            return
        if turns and not call.reply.done():
            asyncio.get_running_loop().call_soon(self._overrun, call, turns - 1)
            return
        if not call.reply.done():
            call.reply.set_result(None)
            self._observer.called("late")
            self._failed()
        if self._wire is not None:
            asyncio.get_running_loop().call_later(_HARD_S, self._give_up, self._wire, call)

    def _give_up(self, wire: Wire, call: _Call) -> None:
        if not call.answered and wire is self._wire:
            wire.fail(TimeoutError())

    def _failed(self) -> None:
        was_closed = self.breaker.closed
        self.breaker.failed(self._clock.now())
        if was_closed and not self.breaker.closed:
            self._opened("slow")

    def _opened(self, why: str) -> None:
        _log.warning(f"{self._name}_away", reason=why, detail="nothing is shared until Redis is well again")
        self._wake.set()

    def _refused(self, error: ResponseError) -> None:
        """Redis answered, and in time: nothing for the breaker. A replica without its master says so at each call."""
        now = self._clock.now()
        if now >= self._tell_from:
            self._tell_from = now + _QUIET_S
            _log.warning(f"{self._name}_refused", detail=str(error)[:200])

    def _load(self, wire: Wire) -> None:
        """Gives Redis our scripts again; what is sent from now on finds them."""
        if not self._loading:
            self._loading = True
            for load in self._loads[:-1]:
                wire.send(load, lambda _: None)
            wire.send(self._loads[-1], self._loaded)

    def _loaded(self, _: Any) -> None:
        self._loading = False

    def _trip(self, error: Exception) -> None:
        if self.breaker.closed:
            self.breaker.trip(self._clock.now())
            self._opened(type(error).__name__)

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
                    self._proven = self._wire
                    self._catch_up()
                    if away:
                        _log.info(f"{self._name}_back")
                    return
            if away:
                self.breaker.failed(self._clock.now())

    async def _try(self) -> float:
        """Connects if need be; how long an answer takes, in seconds."""
        async with asyncio.timeout(_HARD_S):
            if self._wire is None or not self._wire.stands:
                await self._hang_up()
                self._wire = await Wire.open(self._client, self._trip)
            wire = self._wire
            await wire.ask(*self._loads)
            asked = self._clock.now()
            await wire.ask(("PING",))
            took_s = self._clock.now() - asked
            if not wire.stands:
                raise ConnectionError("Redis has just hung up")
            return took_s

    def _catch_up(self) -> None:
        while self._waiting and self._wire is not None:
            self._send(self._wire, self._waiting.popleft())

    async def _hang_up(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

"""One computation per key: identical requests in flight read the same stream as it grows.

A flight runs in a task of its own and belongs to nobody. Readers come and go; the last one to leave ends it. So a
cancelled follower never cancels the others, and neither does the one who happened to come first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from ..common.errors import InternalError, TiermeshError
from ..common.telemetry import get_logger
from ..common.types import Event, Tokens

_log = get_logger()

Source = Callable[["Flight"], Awaitable[None]]
"""Tells a flight its events, to the end; it may ask the flight for its deadline as it goes."""


class Reader:
    """One listener of a flight; reads all of it from the start, at its own pace."""

    def __init__(self, flight: Flight, deadline: float, leads: bool) -> None:
        self.leads = leads
        """Whether this reader's coming began the flight."""
        self.deadline = deadline
        """Monotonic time at which this reader gives up."""
        self._flight = flight
        self._at = 0
        self._wanted = 1
        """So many events beyond those taken end a wait."""
        self._stop: TiermeshError | None = None
        self._wake = asyncio.Event()

    async def take(self) -> tuple[Event, ...]:
        """All that came since the last call, tokens merged; empty after the end.

        Raises the flight's error or `stop`'s.
        """
        items = self._flight.items
        while self._at == len(items):
            if self._stop is not None:
                raise self._stop
            if self._flight.error is not None:
                raise self._flight.error
            if self._flight.done:
                return ()
            self._wake.clear()
            await self._wake.wait()
        if self._stop is not None:
            raise self._stop
        fresh, self._at = items[self._at :], len(items)
        return _merged(fresh) if len(fresh) > 1 else tuple(fresh)

    async def linger(self, within_s: float, events: int = 1) -> bool:
        """Waits for so many more, but no longer than that; whether any has come, so that `take` does not wait."""
        items = self._flight.items
        if len(items) < self._at + events and not (self._flight.done or self._stop):
            self._wanted = events
            self._wake.clear()
            timer = asyncio.get_running_loop().call_later(within_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()
                self._wanted = 1
        return self._at < len(items) and self._stop is None

    def stop(self, error: TiermeshError) -> None:
        """Makes `take` raise, now or when it is called."""
        self._stop = error
        self._wake.set()

    def wake(self) -> None:
        """Something came."""
        if self._flight.done or len(self._flight.items) >= self._at + self._wanted:
            self._wake.set()

    async def leave(self) -> None:
        """Stops listening; the last reader to leave ends the computation and waits until it has let go."""
        if (ending := self._flight.leave(self)) is not None:
            await asyncio.shield(ending)


class Flight:
    """A stream that runs once and is kept while anybody reads it."""

    def __init__(self, forget: Callable[[], None]) -> None:
        self.items: list[Event] = []
        self.error: TiermeshError | None = None
        self.done = False
        self._forget = forget
        self._readers: set[Reader] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def deadline(self) -> float:
        """The latest deadline of those who still listen; a moment long past when nobody does."""
        return max((reader.deadline for reader in self._readers), default=float("-inf"))

    def start(self, source: Source) -> None:
        """Begins, in a task of its own."""
        self._task = asyncio.create_task(self._run(source))

    def tell(self, event: Event) -> None:
        """One more event for all who listen, now or later."""
        self.items.append(event)
        for reader in self._readers:
            reader.wake()

    def reader(self, deadline: float) -> Reader:
        """A new listener."""
        reader = Reader(self, deadline, leads=not self._readers)
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> asyncio.Future[Any] | None:
        """Drops a listener; see `Reader.leave`. What there is to wait for, if anything."""
        self._readers.discard(reader)
        if self._readers or self._task is None:
            return None
        self._forget()
        if self._task.done():
            return None
        self._task.cancel()
        return asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, source: Source) -> None:
        try:
            await source(self)
        except TiermeshError as error:
            self.error = error
        except Exception:  # noqa: BLE001 - the top of a task; logged
            _log.exception("defect", task="flight")
            self.error = InternalError("an internal error ended this request; the server's log has the details")
        finally:
            self.done = True
            self._forget()
            for reader in self._readers:
                reader.wake()


class Flights:
    """All streams in flight, by key."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    def join(self, key: Hashable, deadline: float, source: Source) -> Reader:
        """Listens to the flight of a key, which begins now if there is none."""
        flight = self._flights.get(key)
        if flight is not None:
            return flight.reader(deadline)
        flight = Flight(lambda: self._drop(key, flight))
        reader = flight.reader(deadline)
        flight.start(source)
        self._flights[key] = flight
        return reader

    def _drop(self, key: Hashable, flight: Flight | None) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _merged(events: Sequence[Event]) -> tuple[Event, ...]:
    """The same, tokens of one origin that stand side by side as one event."""
    merged: list[Event] = []
    run: list[Tokens] = []
    for event in events:
        if run and not (isinstance(event, Tokens) and _alike(run[0], event)):
            merged.append(_joined(run))
            run = []
        if isinstance(event, Tokens):
            run.append(event)
        else:
            merged.append(event)
    if run:
        merged.append(_joined(run))
    return tuple(merged)


def _alike(first: Tokens, second: Tokens) -> bool:
    return (first.origin, first.degraded) == (second.origin, second.degraded)


def _joined(parts: Sequence[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        ids=tuple(i for part in parts for i in part.ids),
        text="".join(part.text for part in parts),
        logprobs=tuple(x for part in parts for x in part.logprobs),
        top_logprobs=tuple(x for part in parts for x in part.top_logprobs),
    )

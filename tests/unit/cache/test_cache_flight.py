"""One computation per key: readers come and go, the stream is whole for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from tiermesh.cache.flight import Flight, Flights, Reader
from tiermesh.common.errors import Cancelled, InternalError, Overloaded
from tiermesh.common.types import Event, Finished, FinishReason, Origin, Tokens, Usage

END = Finished(FinishReason.STOP, Usage())


class Source:
    """A stream under the test's control."""

    def __init__(self) -> None:
        self.started = 0
        self.closed = 0
        self.feed: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    async def __call__(self, flight: Flight) -> None:
        self.started += 1
        try:
            while (event := await self.feed.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                flight.tell(event)
        finally:
            self.closed += 1

    def tell(self, *ids: int) -> None:
        for i in ids:
            self.feed.put_nowait(Tokens((i,), str(i), Origin.CLOUD))

    def end(self) -> None:
        self.feed.put_nowait(END)
        self.feed.put_nowait(None)


async def read(reader: Reader) -> tuple[str, int]:
    """The text, and how many events carried it."""
    text, events = "", 0
    while taken := await reader.take():
        for event in taken:
            if isinstance(event, Tokens):
                text, events = text + event.text, events + 1
    await reader.leave()
    return text, events


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_readers_get_all_of_one_stream() -> None:
    flights, source = Flights(), Source()
    first = flights.join("k", 1.0, source)
    reading = asyncio.create_task(read(first))
    source.tell(1, 2)
    await settle()
    second = flights.join("k", 5.0, source)
    assert (first.leads, second.leads) == (True, False)
    source.tell(3)
    source.end()
    assert (await read(second))[0] == "123"
    assert (await reading)[0] == "123"
    assert (source.started, source.closed, len(flights)) == (1, 1, 0)


async def test_a_late_reader_gets_merged_events() -> None:
    flights, source = Flights(), Source()
    reader = flights.join("k", 1.0, source)
    source.tell(*range(10))
    source.end()
    await settle()
    for _ in range(20):
        await asyncio.sleep(0)
    assert await read(reader) == ("0123456789", 1)


async def test_one_that_lingers_gets_what_comes_meanwhile() -> None:
    flights, source = Flights(), Source()
    reader = flights.join("k", 1.0, source)
    source.tell(1)
    assert [event.text for event in await reader.take() if isinstance(event, Tokens)] == ["1"]
    assert not await reader.linger(0.001)
    lingering = asyncio.create_task(reader.linger(30.0))
    await settle()
    source.tell(2)
    assert await lingering
    lingering = asyncio.create_task(reader.linger(30.0))
    assert await lingering, "what came already needs no waiting"
    assert [event.text for event in await reader.take() if isinstance(event, Tokens)] == ["2"]
    lingering = asyncio.create_task(reader.linger(30.0))
    await settle()
    reader.stop(Cancelled("enough"))
    assert not await lingering, "one that is stopped has nothing to wait for"
    await reader.leave()


async def test_the_last_to_leave_ends_it_and_only_the_last() -> None:
    flights, source = Flights(), Source()
    readers = [flights.join("k", 1.0, source) for _ in range(3)]
    await settle()
    await readers[0].leave()
    await readers[2].leave()
    assert source.closed == 0
    await readers[1].leave()
    assert (source.closed, len(flights)) == (1, 0)
    flights.join("k", 1.0, source)
    await settle()
    assert source.started == 2


async def test_one_that_leaves_before_the_stream_began_leaves_nothing() -> None:
    flights, source = Flights(), Source()
    await flights.join("k", 1.0, source).leave()
    assert (source.started, len(flights)) == (0, 0)


async def test_an_error_reaches_every_reader() -> None:
    flights, source = Flights(), Source()
    readers = [flights.join("k", 1.0, source) for _ in range(2)]
    source.tell(1)
    source.feed.put_nowait(Overloaded("full"))
    for reader in readers:
        with pytest.raises(Overloaded):
            await read(reader)
        await reader.leave()
    assert len(flights) == 0


async def test_a_defect_becomes_an_internal_error() -> None:
    flights, source = Flights(), Source()
    reader = flights.join("k", 1.0, source)
    source.feed.put_nowait(KeyError("x"))
    with pytest.raises(InternalError):
        await read(reader)


async def test_stop_ends_one_reader_only() -> None:
    flights, source = Flights(), Source()
    one, other = flights.join("k", 1.0, source), flights.join("k", 1.0, source)
    reading = asyncio.create_task(read(one))
    await settle()
    one.stop(Cancelled("enough"))
    with pytest.raises(Cancelled):
        await reading
    await one.leave()
    source.tell(7)
    source.end()
    assert (await read(other))[0] == "7"


async def test_the_deadline_is_that_of_the_most_patient_reader() -> None:
    flights, source = Flights(), Source()
    seen: list[Flight] = []

    def keep(flight: Flight) -> Awaitable[None]:
        seen.append(flight)
        return source(flight)

    first, second = flights.join("k", 1.0, keep), flights.join("k", 5.0, keep)
    await settle()
    assert seen[0].deadline == 5.0
    await second.leave()
    assert seen[0].deadline == 1.0
    await first.leave()
    assert seen[0].deadline == float("-inf")

"""The emulated wide area: what arrives, in which order, and when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.bench.wide_area import WideAreaLink, precise_loop
from tiermesh.bench.wide_area_path import SEGMENT_BYTES, Conditions, OneWay

TINY_S = 1e-9
SENDINGS = st.lists(st.tuples(st.floats(0, 0.3), st.binary(min_size=1, max_size=4000)), max_size=30)
CONDITIONS = st.builds(Conditions, st.sampled_from([0.0, 0.001, 0.05, 0.1]), st.sampled_from([0.0, 0.01, 0.3, 0.6]))


def arrivals(path: OneWay, sendings: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """When what arrives, for pauses and bytes sent after each; received exactly when the path says so."""
    now, got = 0.0, []
    ends = [(pause, data) for pause, data in sendings] + [(1e9, b"")]
    for pause, data in ends:
        now += pause
        while (due := path.next_s()) is not None and due <= now:
            got.append((due, path.receive(due)))
        path.send(now, data)
    return got


@given(SENDINGS, CONDITIONS, st.integers(0, 100))
def test_bytes_arrive_unchanged_in_order_and_never_early(
    sendings: list[tuple[float, bytes]], conditions: Conditions, seed: int
) -> None:
    got = arrivals(OneWay(conditions, random.Random(seed)), sendings)
    assert b"".join(data for _, data in got) == b"".join(data for _, data in sendings)
    assert [when for when, _ in got] == sorted(when for when, _ in got)
    sent_s, sent, received, behind = 0.0, 0, 0, list(got)
    for pause, data in sendings:
        sent_s, sent = sent_s + pause, sent + len(data)
        while received < sent:
            when, arrived = behind.pop(0)
            received += len(arrived)
        assert when >= sent_s + conditions.rtt_s / 2 - TINY_S
        if not conditions.loss:
            assert when == pytest.approx(sent_s + conditions.rtt_s / 2)


class Script(random.Random):
    """Loses what it is told to lose: 1 is lost, 0 arrives."""

    def __init__(self, losses: list[int]) -> None:
        super().__init__(0)
        self.losses = losses

    def random(self) -> float:
        return 0.0 if self.losses and self.losses.pop(0) else 1.0


def test_a_lone_loss_takes_the_timeout_and_doubles_it() -> None:
    conditions = Conditions(0.1, 0.01)
    once, twice = OneWay(conditions, Script([1, 0])), OneWay(conditions, Script([1, 1, 0]))
    once.send(1.0, b"x")
    twice.send(1.0, b"x")
    assert once.next_s() == pytest.approx(1.0 + 0.3 + 0.05)
    assert twice.next_s() == pytest.approx(1.0 + 0.3 + 0.6 + 0.05)
    assert (once.lost, twice.lost) == (1, 2)


def test_what_follows_waits_and_the_third_tells() -> None:
    path = OneWay(Conditions(0.1, 0.01), Script([0, 1, 0, 0, 0, 0]))
    for i in range(4):
        path.send(1.0 + 0.01 * i, b"abcd"[i : i + 1])
    assert path.receive(1.05 + TINY_S) == b"a"
    assert path.next_s() == pytest.approx(1.01 + 0.3 + 0.05), "two duplicates do not tell"
    path.send(1.04, b"e")
    assert path.next_s() == pytest.approx(1.04 + 0.15), "the acknowledgment of the third, and the way of the repair"
    assert path.receive(1.18) == b""
    assert path.receive(1.2) == b"bcde"


def test_a_large_message_is_several_segments() -> None:
    path = OneWay(Conditions(0.1, 0.01), Script([1, 0, 0, 0, 0]))
    path.send(0.0, bytes(4 * SEGMENT_BYTES))
    assert path.next_s() == pytest.approx(0.15), "its own later segments tell of the first one's loss"


async def ended(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """A server that returns what it gets, and ends when its client does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        await ended(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_the_link_delays_and_changes_nothing(loss: float) -> None:
    rtt_s = 0.02

    async def body() -> None:
        message = random.Random(7).randbytes(20_000)
        async with echo() as target, WideAreaLink(target, Conditions(rtt_s, loss), seed=3) as link:
            host, _, port = link.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            loop = asyncio.get_running_loop()
            begun = loop.time()
            writer.write(message)
            got = [await reader.readexactly(1)]
            assert loop.time() - begun >= rtt_s
            got.append(await reader.readexactly(len(message) - 1))
            assert b"".join(got) == message
            assert bool(link.lost) is bool(loss)
            writer.write_eof()
            assert await reader.read() == b"", "an end travels, too"
            await ended(writer)

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(asyncio.wait_for(body(), 10))


def test_leaving_ends_what_is_still_connected() -> None:
    async def body() -> None:
        async with echo() as target:
            async with WideAreaLink(target, Conditions(0.001), seed=1) as link:
                host, _, port = link.address.rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            await ended(writer)

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(asyncio.wait_for(body(), 10))

"""Redis gone, stopped, slow, full, emptied or tampered with: a miss within the budget, and well again by itself."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tiermesh.cache.breaker import State
from tiermesh.cache.entry import Entry
from tiermesh.cache.keys import CacheKey
from tiermesh.cache.port import Keeping, Lead
from tiermesh.cache.redis_store import RedisStore
from tiermesh.common.cache_types import Scope
from tiermesh.common.errors import Unavailable
from tiermesh.common.types import FinishReason, Usage

pytestmark = pytest.mark.redis

KEEPING = Keeping(60.0)
Open = Callable[..., Awaitable[RedisStore]]
Until = Callable[..., Awaitable[None]]


def key(name: object, tenant: str = "a") -> CacheKey:
    return CacheKey(tenant, str(name), "m")


def entry(text: str = "hello") -> Entry:
    return Entry((1, 2, 3), text, FinishReason.STOP, Usage(5, 3))


@pytest.fixture
def server(start_redis: Callable[..., Any]) -> Any:
    return start_redis()


async def all_miss(store: RedisStore) -> None:
    """No call finds anything, raises, or hangs."""
    async with asyncio.timeout(0.9):  # less than the second after which even the connection is given up
        assert await store.get(key(1)) is None
        await store.put(key(1), entry("other"), KEEPING)
        assert await store.lease(key(1), "standard") is None
        assert await store.lease(key("new"), "standard") is None


async def test_gone_and_back(server: Any, open_store: Open, eventually: Until, seen: Any) -> None:
    store = await open_store(server.url, budget_s=0.05)
    await store.put(key(1), entry(), KEEPING)
    server.kill()
    await all_miss(store)
    assert store.state is not State.CLOSED
    await all_miss(store)
    assert "not_tried" in seen.calls
    for call in (store.purge(Scope("all")), store.holdings("a")):
        with pytest.raises(Unavailable, match="try again"):
            await call
    server.start()
    await eventually(lambda: store.line.up)
    assert await store.get(key(1)) is None  # it came back with nothing, as a replica might
    await store.put(key(1), entry(), Keeping(60.0))
    await eventually_holds(store, entry())


async def eventually_holds(store: RedisStore, wanted: Entry) -> None:
    """Calls may still be late on a busy machine, but not for long."""
    async with asyncio.timeout(10):
        while await store.get(key(1)) != wanted:
            await store.put(key(1), wanted, KEEPING)
            await asyncio.sleep(0.01)


async def test_it_was_never_there(open_store: Open, start_redis: Any, eventually: Until) -> None:
    server = start_redis()
    server.kill()
    store = await open_store(server.url, wait=False, budget_s=0.05)
    await all_miss(store)
    server.start()
    await eventually(lambda: store.line.up)
    await eventually_holds(store, entry())


async def test_stopped_and_resumed(server: Any, open_store: Open, eventually: Until, seen: Any) -> None:
    store = await open_store(server.url, budget_s=0.02)
    await eventually_holds(store, entry())
    server.pause()
    for _ in range(2):
        await all_miss(store)
    assert store.state is not State.CLOSED
    began = time.monotonic()
    for _ in range(1000):
        assert await store.get(key(1)) is None
    assert time.monotonic() - began < 1.0, "an open breaker costs no budget: a thousand would be 20 s"
    server.resume()
    await eventually(lambda: store.line.up)
    await eventually_holds(store, entry())


class SlowPath:
    """A way to Redis on which every answer takes a while."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.delay_s = 0.0
        self.held = b""
        """What has this in it goes no further before `released`."""
        self.holding, self.released = asyncio.Event(), asyncio.Event()
        self.server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection("127.0.0.1", self._port)
        pumps = [
            asyncio.create_task(self._pump(reader, down, False)),
            asyncio.create_task(self._pump(up, writer, True)),
        ]
        self._tasks.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for end in (writer, down):
            end.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, slow: bool) -> None:
        while data := await source.read(65536):
            if slow and self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.held and self.held in data:
                self.holding.set()
                await self.released.wait()
            sink.write(data)

    async def close(self) -> None:
        assert self.server is not None
        self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def path(server: Any) -> AsyncIterator[SlowPath]:
    path = SlowPath(server.port)
    yield path
    await path.close()


async def test_slow_and_swift_again(
    server: Any, path: SlowPath, open_store: Open, eventually: Until, seen: Any
) -> None:
    store = await open_store(await path.start(), budget_s=0.05)
    await eventually_holds(store, entry())
    path.delay_s = 0.15
    for _ in range(2):
        await all_miss(store)
    assert store.state is not State.CLOSED
    trials = seen.calls.count("late")
    await asyncio.wait_for(eventually(lambda: store.state is State.HALF_OPEN), 10)
    await asyncio.wait_for(eventually(lambda: store.state is State.OPEN), 10)
    assert not store.line.up  # it answers, but not within the budget
    assert seen.calls.count("late") == trials, "trials are ours: no request pays for them"
    path.delay_s = 0.0
    await eventually(lambda: store.line.up)
    await eventually_holds(store, entry())


async def test_it_is_up_once_redis_has_answered_on_it(path: SlowPath, open_store: Open, eventually: Until) -> None:
    """Not as soon as the connection stands."""
    path.held = b"SCRIPT"
    store = await open_store(await path.start(), wait=False)
    async with asyncio.timeout(10):
        await path.holding.wait()
    assert not store.line.up
    path.released.set()
    await eventually(lambda: store.line.up)
    assert await store.get(key(1)) is None


async def test_out_of_memory_and_well_again(server: Any, open_store: Open, seen: Any) -> None:
    store = await open_store(server.url)
    await store.put(key(1), entry(), KEEPING)
    server.client.config_set("maxmemory", "1")
    await store.put(key(2), entry(), KEEPING)
    assert await store.get(key(2)) is None
    assert await store.get(key(1)) == entry()
    assert await store.lease(key(1), "standard") == entry()
    assert await store.lease(key(3), "standard") is None
    assert await store.lease(key(3, "a new tenant"), "standard") is None
    assert store.line.up
    server.client.config_set("maxmemory", "0")
    lead = await store.lease(key(3), "standard")
    assert isinstance(lead, Lead)
    await lead.abandon()


async def test_out_of_memory_amid_a_lease(server: Any, open_store: Open) -> None:
    one, other = await open_store(server.url), await open_store(server.url)
    lead = await one.lease(key(1), "standard")
    assert isinstance(lead, Lead)
    follower = await other.lease(key(1), "standard")
    server.client.config_set("maxmemory", "1")
    lead.add(entry().tokens())
    async with asyncio.timeout(10):
        assert await follower.next() is None  # type: ignore[union-attr]
    await lead.abandon()


@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-lru"])
async def test_full_and_evicting(open_store: Open, start_redis: Any, policy: str) -> None:
    """Where all keys may go, the generation may too, and then all that was kept below it is a miss; never an error."""
    server = start_redis("--maxmemory", "4mb", "--maxmemory-policy", policy)
    store = await open_store(server.url, budget_s=30.0)
    await asyncio.gather(*(store.put(key(number), entry(str(number) * 500), KEEPING) for number in range(3000)))
    found = 0
    for number, kept in enumerate(await asyncio.gather(*(store.get(key(number)) for number in range(3000)))):
        assert kept is None or kept.text == str(number) * 500
        found += kept is not None
    assert found < 3000
    assert found > 0 or policy == "allkeys-lru"
    assert server.client.info("stats")["evicted_keys"] > 0
    await store.put(key(3000), entry("after"), KEEPING)
    assert await store.get(key(3000)) == entry("after")
    assert store.line.up


async def test_evicted_generations_bring_no_purged_answer_back(server: Any, open_store: Open) -> None:
    store = await open_store(server.url)
    await store.put(key(1), entry("before"), KEEPING)
    await store.purge(Scope("tenant", "a"))
    server.client.delete("tm:g")
    assert await store.get(key(1)) is None
    await store.put(key(1), entry("after"), KEEPING)
    assert await store.get(key(1)) == entry("after")


@pytest.mark.parametrize("book", ["i", "z"])
async def test_a_book_that_was_evicted_begins_anew(server: Any, open_store: Open, book: str) -> None:
    store = await open_store(server.url)
    few = Keeping(60.0, max_entries=5)
    for number in range(5):
        await store.put(key(number), entry(), few)
    assert server.client.delete(*server.client.keys(f"tm:*:{book}")) == 1
    for number in range(20):
        await store.put(key(number), entry(), few)
        assert (await store.holdings("a"))["a"].entries == min(number + 1, 5)


async def test_books_last_as_long_as_what_they_tell_of(server: Any, open_store: Open) -> None:
    store = await open_store(server.url)
    for ttl_s in (10.0, 60.0, 60.0):  # the only entry, each time in place of the one before: the index is a new key
        await store.put(key(1), entry(), Keeping(ttl_s))
        for book in server.client.keys("tm:*:[iz]"):
            assert 1000 * ttl_s - 5000 < server.client.pttl(book) <= 1125 * ttl_s
    assert len(server.client.keys("tm:*:[iz]")) == 2


def alterations(value: bytes) -> dict[str, bytes]:
    turned = bytearray(value)
    turned[random.Random(5).randrange(len(value))] ^= 4
    return {"turned bit": bytes(turned), "cut": value[:-1], "longer": value + b"x", "empty": b"", "short": b"\1"}


@pytest.mark.parametrize("what", ["turned bit", "cut", "longer", "empty", "short"])
async def test_an_altered_entry_is_a_miss_and_is_dropped(
    server: Any, open_store: Open, what: str, eventually: Until, seen: Any
) -> None:
    store = await open_store(server.url)
    await store.put(key(1), entry(), KEEPING)
    (name,) = server.client.keys("*:e:*")
    server.client.set(name, alterations(server.client.get(name))[what])
    assert await store.get(key(1)) is None
    await eventually(lambda: not server.client.exists(name))
    assert seen.evictions == ["corrupt"]
    lead = await store.lease(key(1), "standard")
    assert isinstance(lead, Lead)
    await lead.abandon()


async def test_an_entry_moved_to_another_name_is_a_miss(server: Any, open_store: Open, eventually: Until) -> None:
    store = await open_store(server.url)
    for name in (key(1), key(2), key(1, "b")):
        await store.put(name, entry(repr(name)), KEEPING)
    names = server.client.keys("*:e:*")
    values = [server.client.get(name) for name in names]
    for name, value in zip(names, values[1:] + values[:1], strict=True):
        server.client.set(name, value)
    for one in (key(1), key(2), key(1, "b")):
        assert await store.get(one) is None
    await eventually(lambda: not server.client.exists(*names))


async def test_an_entry_that_is_no_string_is_dropped(server: Any, open_store: Open) -> None:
    store = await open_store(server.url)
    await store.put(key(1), entry(), KEEPING)
    (name,) = server.client.keys("*:e:*")
    server.client.delete(name)
    server.client.rpush(name, "x")
    assert await store.get(key(1)) is None
    assert not server.client.exists(name)


@pytest.mark.parametrize("kind", ["l", "s", "b"])
async def test_other_keys_of_a_wrong_type_are_a_miss(server: Any, open_store: Open, kind: str) -> None:
    store = await open_store(server.url)
    lead = await store.lease(key(1), "standard")
    assert isinstance(lead, Lead)
    (lease,) = server.client.keys("*:l:*")
    name = lease.replace(b":l:", f":{kind}:".encode())
    server.client.delete(name)
    server.client.hset(name, "x", "y")
    for _ in range(10):
        claim = await store.lease(key(1), "standard")
        if claim is not None:
            await claim.leave()  # type: ignore[union-attr]
    assert store.line.up, "a key that somebody spoilt keeps nobody else from the cache"
    await lead.finish(_ending(), KEEPING)


def _ending() -> Any:
    from tiermesh.cache.port import Ending

    return Ending(FinishReason.STOP, Usage())


async def test_forgotten_scripts_are_loaded_again(server: Any, open_store: Open) -> None:
    store = await open_store(server.url)
    await store.put(key(1), entry(), KEEPING)
    server.client.script_flush()
    assert await store.get(key(1)) == entry()


async def test_scripts_are_forgotten_amid_many_calls(server: Any, open_store: Open, seen: Any) -> None:
    store = await open_store(server.url)
    await store.put(key(1), entry(), KEEPING)
    calls = [asyncio.create_task(store.get(key(1))) for _ in range(100)]
    await asyncio.sleep(0)
    server.client.script_flush()
    assert await asyncio.gather(*calls, *(store.get(key(1)) for _ in range(100))) == [entry()] * 200
    assert "failed" not in seen.calls


async def test_a_connection_that_is_lost_while_nobody_calls(server: Any, open_store: Open, eventually: Until) -> None:
    store = await open_store(server.url)
    await store.put(key(1), entry(), KEEPING)
    server.client.client_kill_filter(_type="normal", skipme=True)
    await eventually(lambda: store.state is not State.CLOSED)
    await eventually(lambda: store.line.up)
    assert await store.get(key(1)) == entry()


@pytest.mark.parametrize("awaited", [True, False])
async def test_one_answer_that_does_not_come_costs_the_connection(
    server: Any, open_store: Open, eventually: Until, awaited: bool
) -> None:
    store = await open_store(server.url, budget_s=0.5)
    await store.put(key(1), entry(), KEEPING)
    server.pause()
    asking = asyncio.create_task(store.get(key(1)))
    if awaited:
        assert await asking is None
        assert store.state is State.CLOSED  # one alone may be late
    else:
        await asyncio.sleep(0)
        asking.cancel()
    await eventually(lambda: store.state is not State.CLOSED)
    server.resume()
    await eventually(lambda: store.line.up)
    assert await store.get(key(1)) == entry()


async def test_a_wrong_password_is_a_miss_and_appears_nowhere(
    open_store: Open, start_redis: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_redis()
    server.client.config_set("requirepass", "right")
    caplog.set_level(logging.DEBUG)
    url = server.url.replace("127", ":wrong-password@127")
    store = await open_store(url, wait=False, budget_s=0.05)
    await all_miss(store)
    assert not store.line.up
    said = capsys.readouterr()
    assert "wrong-password" not in caplog.text + said.out + said.err + repr(store)


async def test_thousands_at_once_share_one_connection(server: Any, open_store: Open) -> None:
    store = await open_store(server.url, budget_s=30.0)
    await asyncio.gather(*(store.put(key(number), entry(str(number)), KEEPING) for number in range(2000)))
    found = await asyncio.gather(*(store.get(key(number)) for number in range(2000)))
    assert [one.text for one in found if one] == [str(number) for number in range(2000)]
    assert server.client.info("clients")["connected_clients"] <= 3  # calls, bell, and this test

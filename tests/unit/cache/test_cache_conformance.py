"""What every store must do, asked of each: the one in memory, and Redis, also where it has to evict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from tiermesh.cache.entry import Entry
from tiermesh.cache.keys import CacheKey
from tiermesh.cache.memory import MemoryStore
from tiermesh.cache.port import Ending, Follower, Keeping, Lead, Store
from tiermesh.common.cache_types import Scope
from tiermesh.common.clock import MonotonicClock
from tiermesh.common.types import FinishReason, Origin, Tokens, Usage

KEEPING = Keeping(60.0)
USAGE = Usage(prompt_tokens=5, completion_tokens=3, billed_tokens=8)
ENDING = Ending(FinishReason.STOP, USAGE)


KINDS = ["memory", *(pytest.param(name, marks=pytest.mark.redis) for name in ("redis", "redis-evicting"))]


@pytest.fixture(params=KINDS)
async def stores(
    request: pytest.FixtureRequest, start_redis: Callable[..., Any], open_store: Callable[..., Any], seen: Any
) -> AsyncIterator[tuple[Store, Store]]:
    """One store as two processes see it; the one in memory is seen by one alone."""
    if request.param == "memory":
        memory = MemoryStore(10**6, MonotonicClock(), seen)
        yield memory, memory
        return
    evicting = ("--maxmemory", "16mb", "--maxmemory-policy", "allkeys-lru") if "evicting" in request.param else ()
    server = start_redis(*evicting)
    yield await open_store(server.url), await open_store(server.url)


@pytest.fixture
def store(stores: tuple[Store, Store]) -> Store:
    return stores[0]


def key(name: object, tenant: str = "a", model: str = "m") -> CacheKey:
    return CacheKey(tenant, str(name), model)


def entry(text: str = "hello", ids: tuple[int, ...] = (1, 2, 70_000)) -> Entry:
    return Entry(ids, text, FinishReason.STOP, USAGE)


def tokens(*ids: int) -> Tokens:
    return Tokens(ids, "".join(f"{i} " for i in ids), Origin.CLOUD)


async def heard(follower: Follower) -> tuple[list[int], str, Ending | Lead | None]:
    """All until the follower has no more, and what ended it."""
    ids: list[int] = []
    text = ""
    async with asyncio.timeout(20):
        while isinstance(told := await follower.next(), Tokens):
            ids += told.ids
            text += told.text
    return ids, text, told


async def lead_and_follower(stores: tuple[Store, Store], name: object = 1) -> tuple[Lead, Follower]:
    lead = await stores[0].lease(key(name), "standard")
    follower = await stores[1].lease(key(name), "standard")
    assert isinstance(lead, Lead)
    assert isinstance(follower, Follower)
    return lead, follower


async def test_what_is_put_comes_back_whole(stores: tuple[Store, Store]) -> None:
    whole = Entry(
        (3, 4, 2**32 - 1),
        "é\U0001f600\n",
        FinishReason.LENGTH,
        Usage(5, 3, 2, 8, 4, 1, handed_over=True),
        (-0.5, -1.25, 0.0),
    )
    await stores[0].put(key(1), whole, KEEPING)
    assert await stores[1].get(key(1)) == whole
    await stores[0].put(key(1), entry(), KEEPING)
    assert await stores[1].get(key(1)) == entry()
    await stores[0].put(key(2), entry("", ()), KEEPING)
    assert await stores[1].get(key(2)) == entry("", ())
    assert await stores[1].get(key(3)) is None


async def test_tenants_and_models_are_apart(store: Store) -> None:
    await store.put(key(1, "a"), entry("a's"), KEEPING)
    await store.put(key(1, "b"), entry("b's"), KEEPING)
    assert await store.get(key(1, "a")) == entry("a's")
    assert await store.get(key(1, "b")) == entry("b's")
    assert await store.get(key(1, "c")) is None


async def test_time_runs_out_whether_or_not_it_is_read(store: Store) -> None:
    await store.put(key(1), entry(), Keeping(0.3))
    assert await store.get(key(1)) == entry()
    async with asyncio.timeout(10):
        while await store.get(key(1)) is not None:  # noqa: ASYNC110 - reading it all the time does not extend it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("scope", "left"),
    [
        (Scope("tenant", "a"), {("b", "m"), ("b", "n")}),
        (Scope("model", "m"), {("a", "n"), ("b", "n")}),
        (Scope("all"), set[tuple[str, str]]()),
        (Scope("tenant", "nobody"), {("a", "m"), ("a", "n"), ("b", "m"), ("b", "n")}),
    ],
)
async def test_a_purge_takes_its_scope_and_nothing_else(
    stores: tuple[Store, Store], scope: Scope, left: set[tuple[str, str]]
) -> None:
    everything = {(tenant, model) for tenant in "ab" for model in "mn"}
    names = {place: key("".join(place), *place) for place in everything}
    for name in names.values():
        await stores[0].put(name, entry(), KEEPING)
    await stores[1].purge(scope)
    assert {place for place in everything if await stores[0].get(names[place])} == left
    for name in names.values():  # and what comes afterwards is kept as ever
        await stores[0].put(name, entry("new"), KEEPING)
        assert await stores[1].get(name) == entry("new")


async def test_an_answer_under_way_at_a_purge_is_not_kept(stores: tuple[Store, Store]) -> None:
    lead = await stores[0].lease(key(1), "standard")
    assert isinstance(lead, Lead)
    lead.add(tokens(1, 2, 3))
    await stores[1].purge(Scope("tenant", "a"))
    await lead.finish(ENDING, KEEPING)
    assert await stores[0].get(key(1)) is None
    after = await stores[1].lease(key(1), "standard")
    assert isinstance(after, Lead)
    await after.abandon()


async def test_a_tenant_keeps_no_more_entries_than_it_may(store: Store, seen: Any) -> None:
    few = Keeping(60.0, max_entries=3)
    await store.put(key("other", "b"), entry(), few)
    for number in range(10):
        await store.put(key(number), entry(str(number)), few)
        assert await store.get(key(number)) == entry(str(number))
        assert (await store.holdings("a"))["a"].entries == min(number + 1, 3)
    assert [bool(await store.get(key(number))) for number in range(10)] == [False] * 7 + [True] * 3
    assert await store.get(key("other", "b")) is not None
    assert seen.evictions == ["quota"] * 7


async def test_a_tenant_keeps_no_more_bytes_than_it_may(store: Store) -> None:
    await store.put(key("one"), entry("x" * 1000), KEEPING)
    size = (await store.holdings("a"))["a"].bytes
    assert size > 1000
    small = Keeping(60.0, max_bytes=4 * size)
    for number in range(10):
        await store.put(key(number), entry("x" * 1000), small)
        assert (await store.holdings("a"))["a"].bytes <= 4 * size
    assert await store.get(key(9)) is not None
    await store.put(key("huge"), entry("x" * 10 * size), small)
    assert await store.get(key("huge")) is None
    for number in range(20):  # the same again and again takes the room of one
        await store.put(key("same"), entry("y" * (900 + number)), small)
    assert (await store.holdings("a"))["a"].entries == 4
    assert await store.get(key("same")) == entry("y" * 919)


async def test_no_quota_lets_nothing_in(store: Store) -> None:
    for nothing in (Keeping(60.0, max_entries=0), Keeping(60.0, max_bytes=0)):
        await store.put(key(1), entry(), nothing)
        assert await store.get(key(1)) is None
        assert (await store.holdings("a"))["a"].entries == 0


async def test_a_lease_brings_the_entry_where_there_is_one(stores: tuple[Store, Store]) -> None:
    await stores[0].put(key(1), entry(), KEEPING)
    assert await stores[1].lease(key(1), "standard") == entry()


async def test_followers_hear_all_from_the_start_to_the_end(stores: tuple[Store, Store], seen: Any) -> None:
    lead = await stores[0].lease(key(1), "standard")
    assert isinstance(lead, Lead)
    lead.add(tokens(1, 2))
    early = await stores[1].lease(key(1), "standard")
    assert isinstance(early, Follower)
    first = await early.next()
    assert isinstance(first, Tokens)
    assert first.ids == (1, 2)
    reading = asyncio.create_task(heard(early))
    for number in range(3, 40):
        lead.add(tokens(number))
        await asyncio.sleep(0.001)
    late = await stores[1].lease(key(1), "standard")
    assert isinstance(late, Follower)
    await lead.finish(ENDING, KEEPING)
    all_ids = list(range(1, 40))
    assert await reading == (all_ids[2:], "".join(f"{i} " for i in all_ids[2:]), ENDING)
    assert await heard(late) == (all_ids, "".join(f"{i} " for i in all_ids), ENDING)
    kept = await stores[1].get(key(1))
    assert kept is not None
    assert kept.ids == tuple(all_ids)
    assert seen.leases == ["led", "followed", "followed"]


async def test_one_who_reads_only_after_the_end_loses_nothing(stores: tuple[Store, Store]) -> None:
    lead, follower = await lead_and_follower(stores)
    for number in range(200):
        lead.add(tokens(number))
    await lead.finish(ENDING, KEEPING)
    ids, _, end = await heard(follower)
    assert (ids, end) == (list(range(200)), ENDING)


async def test_what_is_too_large_to_keep_is_still_heard(stores: tuple[Store, Store]) -> None:
    lead, follower = await lead_and_follower(stores)
    lead.add(tokens(*range(50)))
    await lead.finish(ENDING, Keeping(60.0, max_bytes=10))
    assert (await heard(follower))[::2] == (list(range(50)), ENDING)
    assert await stores[0].get(key(1)) is None


async def test_a_follower_goes_on_where_the_leader_gave_up(stores: tuple[Store, Store], seen: Any) -> None:
    lead, follower = await lead_and_follower(stores)
    third = await stores[0].lease(key(1), "standard")
    assert isinstance(third, Follower)
    lead.add(tokens(1, 2, 3))
    first = await follower.next()
    assert isinstance(first, Tokens)
    await lead.abandon()
    lead.add(tokens(9, 9, 9))  # it has no say any more
    await lead.finish(ENDING, KEEPING)
    rest, _, new = await heard(follower)
    assert (list(first.ids) + rest)[:3] == [1, 2, 3]
    assert isinstance(new, Lead)
    for number in range(len(first.ids) + len(rest) + 1, 7):
        new.add(tokens(number))
    await new.finish(ENDING, KEEPING)
    assert (await heard(third))[::2] == ([1, 2, 3, 4, 5, 6], ENDING)
    kept = await stores[1].get(key(1))
    assert kept is not None
    assert kept.ids == (1, 2, 3, 4, 5, 6)
    assert seen.leases.count("taken_over") == 1


async def test_followers_come_and_go(stores: tuple[Store, Store]) -> None:
    lead, follower = await lead_and_follower(stores)
    others = [await stores[1].lease(key(1), "standard") for _ in range(3)]
    waiting = asyncio.create_task(others[0].next())  # type: ignore[union-attr]
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for other in others:
        assert isinstance(other, Follower)
        await other.leave()
        await other.leave()
    lead.add(tokens(1))
    await lead.finish(ENDING, KEEPING)
    assert (await heard(follower))[::2] == ([1], ENDING)


async def test_an_abandoned_lease_is_free_at_once(stores: tuple[Store, Store]) -> None:
    lead = await stores[0].lease(key(1), "standard")
    assert isinstance(lead, Lead)
    await lead.abandon()
    await lead.abandon()
    again = await stores[1].lease(key(1), "standard")
    assert isinstance(again, Lead)
    again.add(tokens(1))
    await again.finish(ENDING, KEEPING)
    await again.abandon()
    assert isinstance(await stores[0].lease(key(1), "standard"), Entry)


async def test_lanes_tenants_and_requests_do_not_wait_for_each_other(stores: tuple[Store, Store]) -> None:
    first = await stores[0].lease(key(1), "standard")
    others = [
        await stores[1].lease(key(1), "realtime"),
        await stores[1].lease(key(1, "b"), "standard"),
        await stores[1].lease(key(2), "standard"),
        await stores[1].lease(replace(key(1), model="n", digest="other"), "standard"),
    ]
    for one in (first, *others):
        assert isinstance(one, Lead)
        await one.abandon()


async def test_an_answer_that_must_not_be_kept_is_not(stores: tuple[Store, Store]) -> None:
    lead = await stores[0].lease(key(1), "standard")
    assert isinstance(lead, Lead)
    lead.add(replace(tokens(1), degraded=True))
    await lead.finish(ENDING, KEEPING)
    assert await stores[1].get(key(1)) is None

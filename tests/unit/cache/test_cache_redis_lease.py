"""Leases on Redis, where leaders die, sleep, and lose what they told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tiermesh.cache import redis_lead
from tiermesh.cache.entry import Entry
from tiermesh.cache.keys import CacheKey
from tiermesh.cache.port import Ending, Keeping
from tiermesh.cache.redis_follower import RedisFollower
from tiermesh.cache.redis_lead import RedisLead
from tiermesh.cache.redis_store import RedisStore
from tiermesh.common.types import FinishReason, Origin, Tokens, Usage

pytestmark = pytest.mark.redis

KEY = CacheKey("a", "1", "m")
KEEPING = Keeping(60.0)
ENDING = Ending(FinishReason.STOP, Usage(5, 6))
Open = Callable[..., Awaitable[RedisStore]]
Until = Callable[..., Awaitable[None]]


def tokens(*ids: int) -> Tokens:
    return Tokens(ids, "".join(f"{i} " for i in ids), Origin.CLOUD)


async def led(store: RedisStore) -> RedisLead:
    lead = await store.lease(KEY, "standard")
    assert isinstance(lead, RedisLead)
    return lead


async def followed(store: RedisStore) -> RedisFollower:
    follower = await store.lease(KEY, "standard")
    assert isinstance(follower, RedisFollower)
    return follower


async def heard(follower: RedisFollower, most: int = 10**6) -> tuple[list[int], str, Any]:
    """What it hears, until so many ids or its end."""
    ids: list[int] = []
    text, told = "", None
    async with asyncio.timeout(20):
        while len(ids) < most and isinstance(told := await follower.next(), Tokens):
            ids += told.ids
            text += told.text
    return ids, text, told


@pytest.fixture
def server(start_redis: Callable[..., Any]) -> Any:
    return start_redis()


async def no_heartbeat(store: RedisStore) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def sleepy(monkeypatch: pytest.MonkeyPatch, open_store: Open, server: Any) -> Open:
    """A store whose heart does not beat: what a process looks like that was stopped, or died."""

    async def opened(**settings: Any) -> RedisStore:
        with monkeypatch.context() as patch:
            patch.setattr(RedisStore, "_beat", no_heartbeat)
            return await open_store(server.url, **settings)

    return opened


async def test_whoever_asks_after_the_end_finds_the_answer_though_nobody_waited(server: Any, open_store: Open) -> None:
    store = await open_store(server.url)
    lead = await led(store)
    lead.add(tokens(1, 2))
    kept = lead.finish(ENDING, KEEPING)
    found = await store.lease(KEY, "standard")
    assert isinstance(found, Entry)
    assert found.ids == (1, 2)
    await kept


async def test_closing_a_store_keeps_what_was_finished(server: Any, open_store: Open) -> None:
    one, other = await open_store(server.url), await open_store(server.url)
    lead = await led(one)
    lead.add(tokens(1, 2))
    lead.finish(ENDING, KEEPING)
    await one.close()
    assert await other.get(KEY) is not None


async def test_a_dead_leaders_lease_passes_on_with_all_that_was_told(
    server: Any, open_store: Open, sleepy: Open, seen: Any
) -> None:
    dead, alive = await sleepy(lease_s=0.5), await open_store(server.url)
    lead = await led(dead)
    lead.add(tokens(1, 2, 3))
    follower = await followed(alive)
    ids, text, _ = await heard(follower, 3)
    assert (ids, text) == ([1, 2, 3], "1 2 3 ")
    rest, _, new = await heard(follower)
    assert rest == []
    assert isinstance(new, RedisLead)
    new.add(tokens(4, 5, 6))
    await new.finish(ENDING, KEEPING)
    assert await alive.get(KEY) == Entry((1, 2, 3, 4, 5, 6), "1 2 3 4 5 6 ", FinishReason.STOP, ENDING.usage)
    assert seen.leases == ["led", "followed", "taken_over"]


async def test_a_leader_that_wakes_up_too_late_changes_nothing(
    server: Any, open_store: Open, sleepy: Open, seen: Any, eventually: Until
) -> None:
    asleep, alive = await sleepy(lease_s=0.3), await open_store(server.url)
    lead = await led(asleep)
    follower = await followed(alive)
    lead.add(tokens(1, 2))
    assert (await heard(follower, 2))[0] == [1, 2]
    new = (await heard(follower))[2]
    assert isinstance(new, RedisLead)
    third = await followed(alive)
    lead.add(tokens(66, 67))  # tells it, in vain
    await eventually(lambda: "lost" in seen.leases)
    await lead.finish(Ending(FinishReason.LENGTH, Usage()), KEEPING)
    assert await alive.get(KEY) is None
    new.add(tokens(3))
    assert (await heard(third, 3))[0] == [1, 2, 3]
    await new.finish(ENDING, KEEPING)
    kept = await alive.get(KEY)
    assert kept is not None
    assert (kept.ids, kept.reason) == ((1, 2, 3), FinishReason.STOP)


async def test_a_finish_alone_of_a_leader_that_slept_changes_nothing_either(
    server: Any, open_store: Open, sleepy: Open, eventually: Until
) -> None:
    asleep, alive = await sleepy(lease_s=0.1), await open_store(server.url)
    lead = await led(asleep)
    lead.add(tokens(66))
    await eventually(lambda: not server.client.keys("*:l:*"))
    new = await led(alive)
    await lead.finish(Ending(FinishReason.LENGTH, Usage()), KEEPING)
    await lead.abandon()
    assert await alive.get(KEY) is None
    new.add(tokens(1))
    await new.finish(ENDING, KEEPING)
    assert (await alive.get(KEY)).ids == (1,)  # type: ignore[union-attr]


async def test_a_heartbeat_keeps_a_lease_that_has_nothing_to_tell(
    server: Any, open_store: Open, eventually: Until
) -> None:
    """As while a request waits in its queue, for longer than its lease."""
    one, other = await open_store(server.url, lease_s=0.3), await open_store(server.url)
    lead = await led(one)
    (name,) = server.client.keys("*:l:*")
    beats: list[int] = []

    def beat() -> bool:
        left = server.client.pttl(name)
        assert left > 0
        if not beats or left > beats[-1]:
            beats.append(left)
        else:
            beats[-1] = left
        return len(beats) > 10

    await eventually(beat)
    assert isinstance(await other.lease(KEY, "standard"), RedisFollower)
    lead.add(tokens(1))
    await lead.finish(ENDING, KEEPING)
    assert await other.get(KEY) is not None


async def test_a_story_outlasts_the_slowest_follower_we_promise_to_wait_for(server: Any, open_store: Open) -> None:
    one, other = await open_store(server.url), await open_store(server.url)
    lead, follower = await led(one), await followed(other)
    lead.add(tokens(1))
    await heard(follower, 1)
    (story,) = server.client.keys("*:s:*")
    assert 10_000 < server.client.pttl(story) <= 60_000
    await lead.finish(ENDING, Keeping(60.0, max_bytes=1))
    assert 10_000 < server.client.pttl(story) <= 60_000


async def test_nobody_follows_nothing_is_told(server: Any, open_store: Open) -> None:
    lead = await led(await open_store(server.url))
    lead.add(tokens(*range(100)))
    await lead.finish(ENDING, KEEPING)
    assert not server.client.keys("*:s:*")
    assert not server.client.keys("*:l:*")


@pytest.mark.parametrize("degraded", [False, True])
async def test_what_is_not_kept_is_told_to_its_end(server: Any, open_store: Open, degraded: bool) -> None:
    """For want of room, or because it may not be; to those who heard its beginning and to those who didn't."""
    stores = [await open_store(server.url) for _ in range(3)]
    lead, follower = await led(stores[0]), await followed(stores[1])
    lead.add(tokens(1))
    assert (await heard(follower, 1))[0] == [1]
    late = await followed(stores[2])
    lead.add(replace(tokens(2, 3), degraded=degraded))
    await lead.finish(ENDING, KEEPING if degraded else Keeping(60.0, max_bytes=1))
    assert await heard(follower) == ([2, 3], "2 3 ", ENDING)
    assert await heard(late) == ([1, 2, 3], "1 2 3 ", ENDING)
    assert await stores[1].get(KEY) is None


@pytest.mark.parametrize("loss", ["*:s:*", "*:b:*", "*:l:*", "*"])
async def test_what_is_evicted_amid_a_lease_costs_time_and_no_text(
    server: Any, open_store: Open, loss: str, eventually: Until
) -> None:
    one, other = await open_store(server.url), await open_store(server.url)
    lead, follower = await led(one), await followed(other)
    lead.add(tokens(1, 2, 3))
    assert (await heard(follower, 3))[0] == [1, 2, 3]
    server.client.delete(*server.client.keys(loss))
    lead.add(tokens(4, 5))
    ending = asyncio.create_task(heard(follower))
    await asyncio.sleep(0)
    lead.add(tokens(6))
    await lead.finish(ENDING, KEEPING)
    ids, _, end = await ending
    assert ids == [4, 5, 6][: len(ids)]
    if not isinstance(end, Ending):  # the lease itself was lost: the follower goes on from what it heard
        assert isinstance(end, RedisLead)
        assert not (await one.get(KEY))
        end.add(tokens(*[4, 5, 6][len(ids) :]))
        await end.finish(ENDING, KEEPING)
    kept = await other.get(KEY)
    assert kept is not None
    assert (kept.ids, kept.text) == ((1, 2, 3, 4, 5, 6), "1 2 3 4 5 6 ")
    assert isinstance(await one.lease(KEY, "standard"), Entry)


async def test_a_new_leader_tells_again_what_redis_has_forgotten(
    server: Any, open_store: Open, eventually: Until
) -> None:
    stores = [await open_store(server.url) for _ in range(3)]
    lead, follower, third = await led(stores[0]), await followed(stores[1]), await followed(stores[2])
    lead.add(tokens(1, 2, 3))
    for listener in (follower, third):
        assert (await heard(listener, 3))[0] == [1, 2, 3]
    server.client.flushall()
    new = (await heard(follower))[2]
    assert isinstance(new, RedisLead)
    fresh = await followed(stores[0])
    hearing = [asyncio.create_task(heard(listener)) for listener in (third, fresh)]
    new.add(tokens(4))
    await asyncio.sleep(0.1)
    new.add(tokens(5))
    await new.finish(ENDING, KEEPING)
    assert [(await task)[::2] for task in hearing] == [([4, 5], ENDING), ([1, 2, 3, 4, 5], ENDING)]


async def test_an_altered_story_is_not_believed(server: Any, open_store: Open, seen: Any) -> None:
    one, other = await open_store(server.url), await open_store(server.url)
    lead, follower = await led(one), await followed(other)
    lead.add(tokens(1, 2, 3))
    assert (await heard(follower, 3))[0] == [1, 2, 3]
    (story,) = server.client.keys("*:s:*")
    part = bytearray(server.client.lindex(story, 0))
    part[-1] ^= 1
    server.client.lset(story, 0, bytes(part))
    late = await other.lease(KEY, "standard")
    assert late is None  # it computes for itself
    assert "corrupt" in seen.evictions
    server.client.rpush(story, b"nonsense")
    assert (await heard(follower))[2] is None


async def test_a_story_beyond_its_bound_is_not_told_and_the_lease_is_free(
    server: Any, open_store: Open, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    monkeypatch.setattr(redis_lead, "MAX_STORY_BYTES", 1000)
    one, other = await open_store(server.url), await open_store(server.url)
    lead, follower = await led(one), await followed(other)
    lead.add(tokens(*range(500)))
    new = (await heard(follower))[2]
    assert isinstance(new, RedisLead)
    assert sum(server.client.memory_usage(name) for name in server.client.keys("*:s:*")) < 1500
    await lead.finish(ENDING, KEEPING)
    await new.abandon()
    assert await other.get(KEY) is None


async def test_a_lease_that_comes_too_late_is_given_back(server: Any, open_store: Open, eventually: Until) -> None:
    hasty, calm = await open_store(server.url, budget_s=0.02, lease_s=60.0), await open_store(server.url)
    server.pause()
    assert await hasty.lease(KEY, "standard") is None
    server.resume()
    claim: list[Any] = []

    async def free() -> bool:
        claim.append(await calm.lease(KEY, "standard"))
        return isinstance(claim[-1], RedisLead)

    async with asyncio.timeout(15):
        while not await free():
            if isinstance(claim[-1], RedisFollower):
                await claim[-1].leave()
            await asyncio.sleep(0.01)


async def test_one_that_is_cancelled_while_it_asks_leaves_no_lease(
    server: Any, open_store: Open, eventually: Until
) -> None:
    store = await open_store(server.url, lease_s=60.0)
    server.pause()
    asking = asyncio.create_task(store.lease(KEY, "standard"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    server.resume()
    await eventually(lambda: asked_and_free(server))


def asked_and_free(server: Any) -> bool:
    """Whether scripts have run, and no lease is left."""
    return bool(server.client.exists("tm:g")) and not server.client.keys("*:l:*")

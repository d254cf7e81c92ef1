"""The store in memory: bounded, absolute expiry, least recently used first, tenants apart."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.cache.entry import Entry
from tiermesh.cache.keys import CacheKey
from tiermesh.cache.memory import MemoryStore
from tiermesh.cache.port import Keeping
from tiermesh.cache.recorder import Recorder
from tiermesh.common.cache_types import Scope
from tiermesh.common.types import FinishReason, Origin, Tokens, Usage


@dataclass
class HandClock:
    time: float = 0.0

    def now(self) -> float:
        return self.time


KEEPING = Keeping(10.0)


def entry(tokens: int = 1) -> Entry:
    return Entry(
        tuple(range(tokens)), "x" * tokens, FinishReason.STOP, Usage(completion_tokens=tokens, billed_tokens=9)
    )


def key(name: object, tenant: str = "a") -> CacheKey:
    return CacheKey(tenant, str(name))


async def test_an_entry_comes_back_until_its_time_is_over() -> None:
    clock = HandClock()
    store = MemoryStore(10**6, clock)
    await store.put(key(1), entry(), KEEPING)
    clock.time = 9.9
    assert await store.get(key(1)) == entry()
    clock.time = 10.0  # having been read did not extend it
    assert await store.get(key(1)) is None
    assert (len(store), store.bytes) == (0, 0)


async def size_of(kept: Entry) -> int:
    """Bytes that one entry takes up."""
    store = MemoryStore(10**6, HandClock())
    await store.put(key(1), kept, KEEPING)
    return store.bytes


async def test_the_least_recently_used_goes_first() -> None:
    store = MemoryStore(6 * await size_of(entry()), HandClock())
    for number in range(3):
        await store.put(key(number), entry(), KEEPING)
    await store.get(key(0))
    await store.put(key(3), entry(), KEEPING)
    assert await store.get(key(1)) is None
    assert await store.get(key(0)) is not None


async def test_a_flood_of_one_tenant_leaves_the_others_answers() -> None:
    store = MemoryStore(10 * await size_of(entry()), HandClock())
    await store.put(key("kept", "quiet"), entry(), KEEPING)
    for number in range(1000):
        await store.put(key(number, "loud"), entry(), KEEPING)
    assert await store.get(key("kept", "quiet")) is not None
    assert len(store) == 6


async def test_what_is_too_large_is_not_kept() -> None:
    store = MemoryStore(1000, HandClock())
    await store.put(key(1), entry(5000), KEEPING)
    assert (len(store), store.bytes) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 30), st.booleans()), max_size=60))
async def test_bytes_stay_bounded_and_add_up(steps: list[tuple[str, int, int, bool]]) -> None:
    store = MemoryStore(6000, HandClock())
    for tenant, name, tokens, put in steps:
        if put:
            await store.put(key(name, tenant), entry(tokens), KEEPING)
            assert await store.get(key(name, tenant)) == entry(tokens)
        else:
            await store.purge(Scope("tenant", tenant))
        held = [kept.size for entries in store._tenants.values() for kept in entries.values()]
        assert store.bytes == sum(held) <= 6000
        assert len(store) == len(held)


def test_an_answer_is_recorded_whole_or_not_at_all() -> None:
    recorder = Recorder()
    recorder.add(Tokens((1, 2), "ab", Origin.CLOUD, (-0.1, -0.2)))
    recorder.add(Tokens((3,), "c", Origin.EDGE, (-0.3,)))
    kept = recorder.entry(FinishReason.LENGTH, Usage(billed_tokens=5))
    assert kept is not None
    assert (kept.ids, kept.text, kept.logprobs) == ((1, 2, 3), "abc", (-0.1, -0.2, -0.3))
    assert kept.tokens().origin is Origin.CACHE
    assert (kept.hit_usage().cached, kept.hit_usage().billed_tokens) == (True, 0)
    assert recorder.entry(FinishReason.CANCELLED, Usage()) is None
    recorder.add(Tokens((4,), "d", Origin.EDGE, degraded=True))
    assert recorder.entry(FinishReason.STOP, Usage()) is None

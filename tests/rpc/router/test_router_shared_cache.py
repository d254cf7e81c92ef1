"""Two routers, one Redis: identical requests are computed once, whatever happens to the one that computes them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiermesh.common.errors import Unavailable
from tiermesh.common.keys import key_hash
from tiermesh.common.rpc import channel
from tiermesh.common.secret import Secret, write_secret
from tiermesh.common.types import CacheControl, Finished, Origin, Request, Sampling, Tokens
from tiermesh.v1 import inference_pb2_grpc

pytestmark = pytest.mark.redis

LENGTH = 24
HALF = 9


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Tokens))


def ids_of(events: list[Any]) -> tuple[int, ...]:
    return tuple(i for event in events if isinstance(event, Tokens) for i in event.ids)


Share = Callable[..., Awaitable[Any]]


def outcome(router: Any, name: str) -> float:
    return router.sample("cache_leases_total", outcome=name)


async def test_an_answer_of_one_router_is_a_hit_at_the_other(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker()
    one, other = await share(worker), await share(worker)
    first = await one.client.events(Request("hello", 12))
    second = await other.client.events(Request("hello", 12))
    assert text_of(first) == text_of(second) == toy.text(toy.ids(Request("hello", 12), 12))
    assert {event.origin for event in second if isinstance(event, Tokens)} == {Origin.CACHE}
    assert (second[-1].usage.cached, second[-1].usage.billed_tokens) == (True, 0)
    assert second[-1].usage.completion_tokens == first[-1].usage.completion_tokens == 12
    assert len(worker.opens) == 1


async def test_two_hundred_at_once_over_two_routers_are_one_run(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker(stop_before=HALF)
    routers = [await share(worker), await share(worker)]
    request = Request("hello", LENGTH)
    tasks = [asyncio.create_task(routers[i % 2].client.events(request, timeout_s=60.0)) for i in range(200)]
    joined = lambda: sum(router.sample("cache_total", result="joined") for router in routers)  # noqa: E731
    await toy.until(lambda: joined() == 198 and worker.running == 1, 30.0)
    worker.gate.set()
    answers = await asyncio.gather(*tasks)
    assert {(ids_of(a), text_of(a)) for a in answers} == {
        (tuple(toy.ids(request, LENGTH)), toy.text(toy.ids(request, LENGTH)))
    }
    assert len(worker.opens) == 1
    assert sorted(a[-1].usage.billed_tokens for a in answers)[-2:] == [0, 5 + LENGTH]
    assert [outcome(router, "led") + outcome(router, "followed") for router in routers] == [1, 1]


async def test_followers_see_the_answer_grow(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker(stop_before=HALF)
    one, other = await share(worker), await share(worker)
    request = Request("hello", LENGTH)
    first = asyncio.create_task(one.client.events(request))
    await toy.until(lambda: worker.running == 1)
    second, seen = other.client.begin(request)
    await toy.until(lambda: len(ids_of(seen)) == HALF)
    worker.gate.set()
    assert ids_of(await first) == ids_of(await second) == tuple(toy.ids(request, LENGTH))


async def test_a_leaders_router_that_stops_leaves_its_followers_whole(
    toy: Any, start_worker: Any, share: Share
) -> None:
    worker = await start_worker(stop_before=HALF)
    one, other = await share(worker), await share(worker)
    request = Request("hello", LENGTH)
    first, _ = one.client.begin(request)
    await toy.until(lambda: worker.running == 1)
    followers = [other.client.begin(request) for _ in range(10)]
    await toy.until(lambda: all(len(ids_of(seen)) == HALF for _, seen in followers))
    await one.server.stop(0)
    with pytest.raises(Unavailable):
        await first
    await toy.until(lambda: len(worker.opens) == 2)
    worker.gate.set()
    for task, _ in followers:
        events = await task
        assert ids_of(events) == tuple(toy.ids(request, LENGTH))
        assert text_of(events) == toy.text(toy.ids(request, LENGTH))
        assert isinstance(events[-1], Finished)
    assert worker.opens[1].delivered_ids == tuple(toy.ids(request, HALF))
    assert outcome(other, "taken_over") == 1
    # And it is kept: the next one costs nothing.
    assert (await other.client.events(request))[-1].usage.cached


async def test_followers_that_cancel_disturb_nobody(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker(stop_before=HALF)
    one, other = await share(worker), await share(worker)
    request = Request("hello", LENGTH)
    first = asyncio.create_task(one.client.events(request))
    await toy.until(lambda: worker.running == 1)
    followers = [other.client.begin(request) for _ in range(20)]
    await toy.until(lambda: all(len(ids_of(seen)) == HALF for _, seen in followers))
    for task, _ in followers[::2]:
        task.cancel()
    await toy.until(lambda: other.service._answers.running == 10)
    worker.gate.set()
    for task, _ in followers[1::2]:
        assert ids_of(await task) == tuple(toy.ids(request, LENGTH))
    assert ids_of(await first) == tuple(toy.ids(request, LENGTH))
    assert len(worker.opens) == 1


async def test_when_all_followers_of_a_router_are_gone_the_leader_goes_on(
    toy: Any, start_worker: Any, share: Share
) -> None:
    worker = await start_worker(stop_before=HALF)
    one, other = await share(worker), await share(worker)
    request = Request("hello", LENGTH)
    first = asyncio.create_task(one.client.events(request))
    await toy.until(lambda: worker.running == 1)
    follower, seen = other.client.begin(request)
    await toy.until(lambda: len(ids_of(seen)) == HALF)
    follower.cancel()
    await toy.until(lambda: other.service._answers.running == 0)
    worker.gate.set()
    assert ids_of(await first) == tuple(toy.ids(request, LENGTH))
    assert len(worker.opens) == 1


async def test_when_the_leaders_own_clients_leave_a_follower_goes_on(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker(stop_before=HALF)
    one, other = await share(worker), await share(worker)
    request = Request("hello", LENGTH)
    first, _ = one.client.begin(request)
    await toy.until(lambda: worker.running == 1)
    follower, seen = other.client.begin(request)
    await toy.until(lambda: len(ids_of(seen)) == HALF)
    first.cancel()
    await toy.until(lambda: len(worker.opens) == 2)
    worker.gate.set()
    events = await follower
    assert ids_of(events) == tuple(toy.ids(request, LENGTH))
    assert text_of(events) == toy.text(toy.ids(request, LENGTH))


async def test_one_that_comes_late_hears_all(toy: Any, start_worker: Any, share: Share) -> None:
    """It joins when the leader is nearly done, with nothing told so far: nobody followed before."""
    worker = await start_worker(stop_before=LENGTH - 1)
    one, other = await share(worker), await share(worker)
    request = Request("hello", LENGTH)
    first, seen = one.client.begin(request)
    await toy.until(lambda: len(ids_of(seen)) == LENGTH - 1)
    late, heard = other.client.begin(request)
    await toy.until(lambda: len(ids_of(heard)) == LENGTH - 1)
    worker.gate.set()
    assert ids_of(await late) == ids_of(await first) == tuple(toy.ids(request, LENGTH))
    assert len(worker.opens) == 1


async def test_sampled_answers_are_shared_with_an_explicit_seed_alone(
    toy: Any, start_worker: Any, share: Share
) -> None:
    worker = await start_worker()
    one, other = await share(worker), await share(worker)
    seeded = Request("hello", 6, sampling=Sampling(temperature=1.0, seed=7))
    drawn = Request("hello", 6, sampling=Sampling(temperature=1.0))
    for request, runs in ((seeded, 1), (replace(seeded, sampling=Sampling(temperature=1.0, seed=8)), 2), (drawn, 4)):
        await one.client.events(request)
        await other.client.events(request)
        assert len(worker.opens) == runs


async def test_bypass_and_refresh_do_what_they_say(toy: Any, start_worker: Any, share: Share, server: Any) -> None:
    worker = await start_worker()
    one, other = await share(worker), await share(worker)
    request = Request("hello", 6)
    await one.client.events(replace(request, cache=CacheControl.BYPASS))
    assert not server.client.keys("tm:*")
    await one.client.events(replace(request, cache=CacheControl.REFRESH))
    assert len(worker.opens) == 2
    assert (await other.client.events(request))[-1].usage.cached
    assert not (await other.client.events(replace(request, cache=CacheControl.BYPASS)))[-1].usage.cached
    assert not (await other.client.events(replace(request, cache=CacheControl.REFRESH)))[-1].usage.cached
    assert len(worker.opens) == 4


async def test_logprobs_are_served_only_where_they_were_kept(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker()
    one = await share(worker)
    await one.client.events(Request("hello", 6))
    asked = await one.client.events(Request("hello", 6, logprobs=True))
    assert not asked[-1].usage.cached
    assert len(worker.opens) == 2


async def test_who_wants_the_most_probable_ids_gets_them_computed(
    toy: Any, start_worker: Any, share: Share, server: Any
) -> None:
    """They are not kept, so no entry could bring them."""
    worker = await start_worker()
    router = await share(worker)
    await router.client.events(Request("hello", 6, logprobs=True))
    kept = server.client.keys("tm:*:e:*")
    for runs in (2, 3):
        asked = await router.client.events(Request("hello", 6, logprobs=True, top_logprobs=2))
        assert not asked[-1].usage.cached
        assert len(worker.opens) == runs
    assert server.client.keys("tm:*:e:*") == kept
    assert len(kept) == 1


async def test_a_tenant_without_a_cache_leaves_nothing_in_redis(
    toy: Any, start_worker: Any, share: Share, server: Any
) -> None:
    worker = await start_worker()
    router = await share(worker, tenants=(toy.tenant("demo", cache_exact=False),))
    for _ in range(2):
        await router.client.events(Request("hello", 6))
    assert len(worker.opens) == 2
    assert not server.client.keys("tm:*")


async def test_tenants_share_nothing(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker()
    router = await share(worker, tenants=(toy.tenant("demo"), toy.tenant("dem")))
    await router.client.events(Request("hello", 6))
    assert not (await router.client.events(Request("hello", 6), "dem-key"))[-1].usage.cached
    assert len(worker.opens) == 2


async def test_routers_with_other_secrets_share_nothing(toy: Any, start_worker: Any, share: Share) -> None:
    worker = await start_worker()
    one = await share(worker)
    await one.client.events(Request("hello", 6))
    other = await share(worker, secret=Secret(bytes(32)))
    assert not (await other.client.events(Request("hello", 6)))[-1].usage.cached


@pytest.fixture
async def start_process(tmp_path: Path, server: Any) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Starts a router as a process of its own, on the shared cache: the process and a client."""
    write_secret(tmp_path / "mesh.secret")
    limits = {"concurrent": 500, "queued": 500, "requests_per_minute": 100_000, "tokens_per_minute": 10**7}

    async with AsyncExitStack() as stack:

        async def start(make_client: Any, worker: str) -> tuple[asyncio.subprocess.Process, Any]:
            values = {
                "mesh": {"secret_file": "mesh.secret"},
                "tenants": {"demo": {"api_keys": [key_hash("demo-key")], "limits": limits}},
                "cache": {"url": server.url, "budget_ms": 5000, "lease_ms": 1000},
                "router": {"listen": "127.0.0.1:0", "metrics": None, "workers": [worker]},
            }
            config = tmp_path / "mesh.yaml"
            config.write_text(json.dumps(values))
            command = [sys.executable, "-P", "-m", "tiermesh.router.main", "--config", str(config)]
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
            stack.push_async_callback(process.wait)
            stack.callback(lambda: process.returncode is None and process.kill())
            assert process.stdout is not None
            chan = channel((await process.stdout.readline()).decode().split()[1])
            stack.push_async_callback(chan.close)
            return process, make_client(inference_pb2_grpc.InferenceServiceStub(chan))

        yield start


async def test_two_hundred_over_two_processes_outlive_the_one_that_is_killed(
    toy: Any, start_worker: Any, start_process: Any
) -> None:
    """SIGKILL in the middle: its own clients lose their router, every other one's answer is whole, from two runs."""
    worker = await start_worker(stop_before=HALF)
    (doomed, one), (_, other) = [await start_process(toy.Client, worker.address) for _ in range(2)]
    request = Request("hello", LENGTH)
    mine = [one.begin(request) for _ in range(100)]
    await toy.until(lambda: worker.running == 1, 20.0)
    theirs = [other.begin(request) for _ in range(100)]
    await toy.until(lambda: all(len(ids_of(seen)) == HALF for _, seen in (*mine, *theirs)), 20.0)
    assert len(worker.opens) == 1
    doomed.send_signal(signal.SIGKILL)
    for task, _ in mine:
        with pytest.raises(Unavailable):
            await task
    await toy.until(lambda: len(worker.opens) == 2, 20.0)
    worker.gate.set()
    answers = await asyncio.gather(*(task for task, _ in theirs))
    whole = toy.ids(request, LENGTH)
    assert {(ids_of(a), text_of(a)) for a in answers} == {(tuple(whole), toy.text(whole))}
    assert worker.opens[1].delivered_ids == tuple(whole[:HALF])
    assert len(worker.opens) == 2


async def test_two_hundred_over_two_processes_are_one_run(toy: Any, start_worker: Any, start_process: Any) -> None:
    worker = await start_worker(stop_before=HALF)
    clients = [(await start_process(toy.Client, worker.address))[1] for _ in range(2)]
    request = Request("hello", LENGTH)
    readers = [clients[i % 2].begin(request) for i in range(200)]
    await toy.until(lambda: all(len(ids_of(seen)) == HALF for _, seen in readers), 20.0)
    worker.gate.set()
    answers = await asyncio.gather(*(task for task, _ in readers))
    whole = toy.ids(request, LENGTH)
    assert {(ids_of(a), text_of(a)) for a in answers} == {(tuple(whole), toy.text(whole))}
    assert len(worker.opens) == 1
    assert sorted(a[-1].usage.billed_tokens for a in answers)[-2:] == [0, 5 + LENGTH]

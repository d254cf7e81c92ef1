"""Client → router → worker: answers, cache, sharing, failover, limits; with toy workers over real gRPC."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tiermesh.common import wire, wire_events
from tiermesh.common.errors import ConfigError, DeadlineExceeded, Unauthenticated, Unavailable
from tiermesh.common.frames import CloseReason
from tiermesh.common.types import Finished, FinishReason, Origin, Request, Sampling, Started, Tokens
from tiermesh.v1 import inference_pb2 as pb


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Tokens))


def ids_of(events: list[Any]) -> list[int]:
    return [i for event in events if isinstance(event, Tokens) for i in event.ids]


async def test_an_answer_that_breaks_off_late_teaches_how_long_the_next_may_take(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    """Of its tenant in its tier alone."""
    worker = await start_worker(stop_before=1)
    router = await start_router(worker, tenants=(toy.tenant("demo"), toy.tenant("other")))
    estimates = router.service._core.parts.estimates
    expected_s = estimates.service_s(1, 4, {})
    with pytest.raises(DeadlineExceeded):
        await router.client.events(Request("held", 4, deadline_s=4 * expected_s))
    await toy.until(lambda: estimates.slow_s("demo", "standard", 1.0) > 2.0)
    assert estimates.slow_s("other", "standard", 1.0) == estimates.slow_s("demo", "batch", 1.0) == 1.0


async def test_an_answer_streams_through(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker()
    router = await start_router(worker)
    request = Request("hello", 12)
    events = await router.client.events(request)
    assert isinstance(events[0], Started)
    assert (events[0].tier, events[0].model) == ("standard", "toy")
    assert ids_of(events) == toy.ids(request, 12)
    assert text_of(events) == toy.text(toy.ids(request, 12))
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.STOP
    assert ("router", "queue") in {(timing.hop, timing.stage) for timing in events[-1].timings}
    await toy.until(lambda: router.running == 0)
    assert worker.opens[0].request.request_id
    assert worker.opens[0].tenant == "demo"


async def test_the_second_time_the_cache_answers(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker()
    router = await start_router(worker)
    first = await router.client.events(Request("hello", 12))
    second = await router.client.events(Request("hello", 12))
    assert text_of(first) == text_of(second)
    assert len(worker.opens) == 1
    assert {event.origin for event in second if isinstance(event, Tokens)} == {Origin.CACHE}
    assert second[-1].usage.cached
    assert second[-1].usage.billed_tokens == 0
    assert second[-1].usage.completion_tokens == 12


@pytest.mark.parametrize(("together", "messages"), [(True, 1), (False, 3)])
async def test_a_hit_is_one_message_for_whoever_takes_events_together(
    together: bool, messages: int, toy: Any, start_worker: Any, start_router: Any
) -> None:
    router = await start_router(await start_worker())
    await router.client.events(Request("hello", 12))
    asked = wire.request_to(Request("hello", 12))
    asked.together = together
    call = router.client.stub.Generate(asked, metadata=[("authorization", "Bearer demo-key")])
    heard = [wire_events.events_from(message) async for message in call]
    assert len(heard) == messages
    started, tokens, finished = (event for events in heard for event in events)
    assert isinstance(started, Started)
    assert isinstance(tokens, Tokens)
    assert isinstance(finished, Finished)
    assert tokens.text == toy.text(toy.ids(Request("hello", 12), 12))


async def test_identical_requests_in_flight_share_one_upstream_call(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    worker = await start_worker(stop_before=3)
    router = await start_router(worker)
    request = Request("hello", 12)
    tasks = [asyncio.create_task(router.client.events(request)) for _ in range(5)]
    await toy.until(lambda: router.sample("cache_total", result="joined") == 4)
    worker.gate.set()
    answers = [await task for task in tasks]
    assert {text_of(events) for events in answers} == {toy.text(toy.ids(request, 12))}
    assert len({events[0].request_id for events in answers}) == 5
    assert sorted(events[-1].usage.billed_tokens for events in answers) == [0, 0, 0, 0, 17]
    assert len(worker.opens) == 1


async def test_the_first_of_a_flight_may_leave(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(stop_before=3)
    router = await start_router(worker)
    request = Request("hello", 12)
    first = asyncio.create_task(router.client.events(request))
    await toy.until(lambda: worker.running == 1)
    second = asyncio.create_task(router.client.events(request))
    await toy.until(lambda: router.sample("cache_total", result="joined") == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await toy.until(lambda: router.service._answers.running == 1)
    worker.gate.set()
    assert text_of(await second) == toy.text(toy.ids(request, 12))
    assert len(worker.opens) == 1


async def test_a_follower_outlives_the_deadline_of_the_first(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(stop_before=3)
    router = await start_router(worker)
    request = Request("hello", 12)
    first = asyncio.create_task(router.client.events(replace(request, deadline_s=0.3)))
    await toy.until(lambda: worker.running == 1)
    second = asyncio.create_task(router.client.events(request))
    with pytest.raises(DeadlineExceeded):
        await first
    worker.gate.set()
    assert text_of(await second) == toy.text(toy.ids(request, 12))


async def test_a_client_that_leaves_frees_worker_and_slot(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(stop_before=3)
    router = await start_router(worker)
    task = asyncio.create_task(router.client.events(Request("hello", 12)))
    await toy.until(lambda: worker.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await toy.until(lambda: worker.running == 0 and router.running == 0)
    assert worker.closes[0].reason is CloseReason.CANCELLED


async def test_a_client_that_leaves_the_queue_is_never_dispatched(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    worker = await start_worker(slots=1, stop_before=3)
    router = await start_router(worker)
    tasks = [asyncio.create_task(router.client.events(Request(f"p{i}", 12))) for i in range(3)]
    # Not before both dispatched ones have arrived: until then the worker can't tell which one waits.
    await toy.until(lambda: len(worker.opens) == 2 and router.sample("queue_length", tier="standard") == 1)
    waits = next(
        t for t, i in zip(tasks, range(3), strict=True) if f"p{i}" not in {o.request.prompt for o in worker.opens}
    )
    waits.cancel()
    await toy.until(lambda: router.sample("queue_length", tier="standard") == 0)
    worker.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(worker.opens) == 2


async def test_cancel_ends_the_stream_as_cancelled(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(stop_before=3)
    router = await start_router(worker, tenants=(toy.tenant("demo"), toy.tenant("other")))
    task, seen = router.client.begin(Request("hello", 12, request_id="r1"))
    await toy.until(lambda: len(ids_of(seen)) == 3)
    cancel = router.client.stub.Cancel
    other = await cancel(pb.CancelRequest(request_id="r1"), metadata=[("authorization", "Bearer other-key")])
    assert not other.cancelled
    mine = await cancel(pb.CancelRequest(request_id="r1"), metadata=[("authorization", "Bearer demo-key")])
    assert mine.cancelled
    events = await task
    assert events[-1].reason is FinishReason.CANCELLED
    assert events[-1].usage.completion_tokens == 3
    await toy.until(lambda: worker.running == 0 and router.running == 0)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=7), Sampling(temperature=0.8)])
async def test_a_worker_that_dies_is_replaced_without_a_gap(
    toy: Any, start_worker: Any, start_router: Any, sampling: Sampling
) -> None:
    workers = [await start_worker(stop_before=5) for _ in range(2)]
    router = await start_router(*workers)
    await toy.until(lambda: router.sample("slots") == 18)
    request = Request("hello", 20, sampling=sampling)
    task, seen = router.client.begin(request)
    await toy.until(lambda: len(ids_of(seen)) == 5)
    dying, other = sorted(workers, key=lambda worker: -worker.running)
    other.gate.set()
    await dying.kill()
    events = await task
    resumed = other.opens[0]
    assert resumed.request.sampling.seed == dying.opens[0].request.sampling.seed
    assert list(resumed.delivered_ids) == toy.ids(resumed.request, 5)
    assert resumed.delivered_bytes == len(toy.text(resumed.delivered_ids))
    assert ids_of(events) == toy.ids(resumed.request, 20)
    assert text_of(events) == toy.text(toy.ids(resumed.request, 20))
    assert router.sample("resumed_total") == 1


async def test_a_request_that_fails_everywhere_stops(start_worker: Any, start_router: Any) -> None:
    workers = [await start_worker() for _ in range(2)]
    router = await start_router(*workers)
    with pytest.raises(Unavailable, match="poisoned"):
        await router.client.events(Request("poison", 4))
    assert sum(len(worker.opens) for worker in workers) == 3
    assert text_of(await router.client.events(Request("hello", 4)))


async def test_a_worker_that_comes_back_is_used_again(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker()
    router = await start_router(worker)
    await worker.kill()
    await toy.until(lambda: not router.service.ready)
    again = await start_worker(listen=worker.address)
    await toy.until(lambda: router.service.ready)
    assert text_of(await router.client.events(Request("hello", 4)))
    assert len(again.opens) == 1


async def test_a_worker_that_restarts_in_the_middle_goes_on(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(slots=16, stop_before=4)
    router = await start_router(worker)
    begun = [router.client.begin(Request(f"p{i}", 12)) for i in range(12)]
    await toy.until(lambda: all(len(ids_of(seen)) == 4 for _, seen in begun))
    await worker.kill()
    again = await start_worker(listen=worker.address, slots=16)
    for i, (task, _) in enumerate(begun):
        assert ids_of(await task) == toy.ids(Request(f"p{i}", 12), 12)
    assert len(again.opens) == 12


async def test_a_worker_that_keeps_failing_is_set_aside_for_a_while(
    toy: Any, start_worker: Any, start_router: Any
) -> None:
    workers = [await start_worker(slots=8) for _ in range(2)]
    router = await start_router(*workers)
    await toy.until(lambda: router.sample("slots") == 18)
    for _ in range(3):
        with pytest.raises(Unavailable, match="poisoned"):
            await router.client.events(Request("poison", 4))
    assert sorted(router.sample("worker_up", worker=worker.address) for worker in workers) == [0, 1]
    assert text_of(await router.client.events(Request("hello", 4)))
    await toy.until(lambda: router.sample("slots") == 10)  # one request, to try it with
    assert text_of(await router.client.events(Request("hello again", 4)))
    await toy.until(lambda: router.sample("slots") == 18)


async def test_the_last_worker_is_never_set_aside(start_worker: Any, start_router: Any) -> None:
    router = await start_router(await start_worker())
    for _ in range(3):
        with pytest.raises(Unavailable, match="poisoned"):
            await router.client.events(Request("poison", 4))
    assert text_of(await router.client.events(Request("hello", 4)))


async def test_a_higher_tier_goes_first(toy: Any, start_worker: Any, start_router: Any) -> None:
    worker = await start_worker(slots=1, stop_before=1)
    router = await start_router(worker)
    tasks = []
    for i, tier in enumerate(["standard", "standard", "batch", "standard", "realtime"]):
        tasks.append(asyncio.create_task(router.client.events(Request(f"{tier}{i}", 4, tier=tier))))
        await toy.until(lambda i=i: router.sample("cache_total", result="miss") == i + 1)
    worker.gate.set()
    for task in tasks:
        await task
    assert [o.request.prompt for o in worker.opens][2:] == ["realtime4", "standard3", "batch2"]


async def test_a_reload_changes_keys_and_workers(toy: Any, start_worker: Any, start_router: Any) -> None:
    first, second = await start_worker(), await start_worker()
    router = await start_router(first)
    mesh = replace(
        router.mesh,
        tenants=(toy.tenant("acme"),),
        router=replace(router.mesh.router, workers=(second.address,)),
    )
    router.service.reload(mesh)
    with pytest.raises(Unauthenticated):
        await router.client.events(Request("hello", 4))
    assert text_of(await router.client.events(Request("hello", 4), "acme-key"))
    assert (len(first.opens), len(second.opens)) == (0, 1)
    with pytest.raises(ConfigError, match="restart"):
        router.service.reload(replace(mesh, tiers=mesh.tiers[:1]))

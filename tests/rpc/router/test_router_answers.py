"""Client → router → worker: answers, cache, sharing, failover, limits; with toy workers over real gRPC."""

from __future__ import annotations

from typing import Any

from tiermesh.common.types import Finished, FinishReason, Origin, Request, Started, Tokens


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Tokens))


def ids_of(events: list[Any]) -> list[int]:
    return [i for event in events if isinstance(event, Tokens) for i in event.ids]


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

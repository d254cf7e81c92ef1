"""From an admitted request to its events: the cache, a flight that identical requests share, a slot, a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from ..cache.entry import Entry, Recorder, Store
from ..cache.flight import Flight, Flights, Reader
from ..cache.keys import CacheKey
from ..common.clock import Clock
from ..common.errors import Cancelled, DeadlineExceeded, RequestIdReused
from ..common.frames import RelayFinished, RelayTokens
from ..common.types import (
    Event,
    Finished,
    FinishReason,
    Quality,
    Request,
    Started,
    Timing,
    Tokens,
    Usage,
)
from .dispatch import Dispatcher, Work
from .estimates import Estimates, actual_cost
from .jobs import Job
from .limits import Limits
from .metrics import Metrics
from .orders import Order
from .registry import Registry
from .slots import Slots, Ticket


@dataclass(slots=True)
class _Running:
    """Who listens under one request id."""

    asked: Request
    readers: set[Reader]


@dataclass(frozen=True, slots=True)
class Parts:
    """What answers are made with."""

    registry: Registry
    slots: Slots
    dispatcher: Dispatcher
    store: Store
    limits: Limits
    estimates: Estimates
    metrics: Metrics
    clock: Clock


class Answers:
    """All answers of this router."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._flights = Flights()
        self._running: dict[tuple[str, str], _Running] = {}

    @property
    def running(self) -> int:
        """Answers that somebody waits for."""
        return len(self._running)

    async def answer(self, order: Order) -> AsyncGenerator[Event, None]:
        """Started, Tokens…, Finished. Closing it leaves the flight, which ends when nobody listens any more."""
        self._check_id(order)
        model = self._parts.registry.model
        assert model is not None, "the service waits for a model"
        key = order.key(model.digests)
        if (entry := await self._cached(order, key)) is not None:
            for part in self._hit(order, model.id, entry):
                yield part
            return
        reader = self._join(order, key, model.id)
        timer = self._end_in_time(order, reader)
        given = 0
        try:
            if order.metered and not reader.leads:
                self._parts.limits.reserve(order.tenant, 0)
            while (event := await reader.next()) is not None:
                if isinstance(event, Tokens):
                    given += len(event.ids)
                elif isinstance(event, Started):
                    event = replace(event, request_id=order.request.request_id)
                elif not reader.leads:
                    event = replace(event, usage=replace(event.usage, billed_tokens=0))
                yield event
        except Cancelled:
            yield Finished(FinishReason.CANCELLED, Usage(completion_tokens=given))
        finally:
            timer.cancel()
            await self._leave(order, reader)

    def cancel(self, tenant: str, request_id: str) -> bool:
        """Ends a running answer; its stream finishes as cancelled."""
        running = self._running.get((tenant, request_id))
        for reader in running.readers if running else ():
            reader.stop(Cancelled("the request was cancelled"))
        return running is not None

    def _check_id(self, order: Order) -> None:
        running = self._running.get((order.tenant.name, order.request.request_id))
        if running is not None and running.asked != order.asked:
            raise RequestIdReused("this request id belongs to another running request; use a fresh one")

    def _hit(self, order: Order, model: str, entry: Entry) -> tuple[Event, ...]:
        if order.metered:
            self._parts.limits.reserve(order.tenant, 0)
        self._parts.metrics.tokens("cache", len(entry.ids))
        started = Started(order.request.request_id, model, order.request.tier, Quality.EXACT)
        return (started, entry.tokens(), Finished(entry.reason, entry.hit_usage()))

    async def _cached(self, order: Order, key: CacheKey) -> Entry | None:
        if not (order.shared and order.tenant.cache_exact):
            return None
        entry = await self._parts.store.get(key)
        self._parts.metrics.cache("hit" if entry else "miss")
        return entry

    def _join(self, order: Order, key: CacheKey, model: str) -> Reader:
        """This request's own view of a flight. Without a shareable key the request id is the flight's name."""
        own = (order.tenant.name, order.request.request_id)
        name = (key, order.request.tier) if order.shared else own
        reader = self._flights.join(name, order.deadline, lambda flight: self._compute(order, key, model, flight))
        self._running.setdefault(own, _Running(order.asked, set())).readers.add(reader)
        return reader

    def _end_in_time(self, order: Order, reader: Reader) -> asyncio.TimerHandle:
        late = DeadlineExceeded("the deadline passed before the answer was complete; allow more time")
        delay_s = max(0.0, order.deadline - self._parts.clock.now())
        return asyncio.get_running_loop().call_later(delay_s, reader.stop, late)

    async def _leave(self, order: Order, reader: Reader) -> None:
        own = (order.tenant.name, order.request.request_id)
        readers = self._running[own].readers
        readers.discard(reader)
        if not readers:
            del self._running[own]
        await asyncio.shield(reader.leave())

    async def _compute(self, order: Order, key: CacheKey, model: str, flight: Flight) -> AsyncGenerator[Event, None]:
        """The flight itself: a slot, the answer from the pool, the bill, the cache."""
        parts, request, tenant = self._parts, order.request, order.tenant
        prompt = parts.estimates.prompt_tokens(request.prompt)
        expected = parts.estimates.output_tokens(tenant.name, model, request.max_tokens)
        reservation = parts.limits.reserve(tenant, prompt + expected) if order.metered else None
        meter = _Meter(parts, order, model, prompt)
        ticket: Ticket | None = None
        try:
            ticket = parts.slots.submit(self._job(order, prompt, expected, order.deadline))
            yield Started(request.request_id, model, request.tier, Quality.EXACT)
            try:
                await ticket.wait()
            except DeadlineExceeded:
                if flight.deadline <= parts.clock.now():
                    raise
                # The one who came first ran out of time; somebody with more of it still listens.
                ticket = parts.slots.submit(self._job(order, prompt, expected, flight.deadline))
                await ticket.wait()
            meter.dispatched()
            recorder = Recorder()
            work = Work(request, tenant.name, lambda: flight.deadline)
            async with aclosing(parts.dispatcher.answer(work)) as frames:
                async for frame in frames:
                    if isinstance(frame, RelayTokens):
                        meter.tokens(len(frame.ids))
                        top = frame.top_logprobs
                        tokens = Tokens(frame.ids, frame.text, frame.origin, frame.logprobs, top_logprobs=top)
                        recorder.add(tokens)
                        yield tokens
                    else:
                        finished = meter.finished(frame, work)
                        entry = recorder.entry(finished.reason, finished.usage)
                        if order.kept and entry is not None:
                            await parts.store.put(key, entry, tenant.cache_ttl_s)
                        yield finished
        finally:
            if ticket is not None:
                ticket.release(meter.cost)
            if reservation is not None:
                parts.limits.settle(reservation, meter.used)

    def _job(self, order: Order, prompt: int, expected: float, deadline: float) -> Job:
        estimates = self._parts.estimates
        reads = estimates.uncached_tokens(order.tenant.name, prompt)
        batches = self._parts.registry.batches
        return Job(
            number=self._parts.slots.number(),
            tenant=order.tenant.name,
            tier=order.request.tier,
            cost=actual_cost(reads, expected),
            deadline=deadline,
            service_s=estimates.service_s(reads, expected, batches),
            first_s=estimates.service_s(reads, 1.0, batches),
            attained=estimates.attained(order.request.prompt),
        )


class _Meter:
    """Times and counts of one answer, for its bill, the estimates and the metrics."""

    def __init__(self, parts: Parts, order: Order, model: str, prompt: int) -> None:
        self._parts = parts
        self._order = order
        self._model = model
        self._prompt = prompt
        self._cached = 0
        self._output = 0
        self._begun = parts.clock.now()
        self._dispatched: float | None = None
        self._first: float | None = None

    @property
    def used(self) -> float:
        """Tokens for the tenant's limit: nothing before the dispatch."""
        return 0.0 if self._dispatched is None else float(self._prompt + self._output)

    @property
    def cost(self) -> float:
        """Work done, as the scheduler counts it."""
        return 0.0 if self._dispatched is None else actual_cost(self._prompt - self._cached, self._output)

    def dispatched(self) -> None:
        """The slot is ours."""
        self._dispatched = self._parts.clock.now()
        self._parts.metrics.queued(self._order.request.tier, self._dispatched - self._begun)

    def tokens(self, count: int) -> None:
        """So many more ids came."""
        if self._first is None and count:
            self._first = self._parts.clock.now()
            self._parts.metrics.first_token(self._order.request.tier, self._first - self._begun)
        self._output += count

    def finished(self, frame: RelayFinished, work: Work) -> Finished:
        """The closing event, with the router's own time and the bill."""
        now = self._parts.clock.now()
        request, usage = self._order.request, frame.usage
        assert self._dispatched is not None
        self._prompt = usage.prompt_tokens or self._prompt
        self._cached = usage.cached_prompt_tokens
        self._learn(work, now)
        if self._first is not None:
            self._parts.metrics.tpot(request.tier, now - self._first, self._output)
        if self._order.metered:
            self._parts.metrics.tokens("cloud", self._output)
        queue = Timing("router", "queue", self._dispatched - self._begun)
        usage = replace(usage, billed_tokens=usage.prompt_tokens + usage.completion_tokens)
        return Finished(frame.reason, usage, (queue, *frame.timings))

    def _learn(self, work: Work, now: float) -> None:
        """What the answer says about the next ones; times only where one worker gave all of it."""
        estimates, tenant, request = self._parts.estimates, self._order.tenant.name, self._order.request
        estimates.finished(tenant, self._model, request.max_tokens, self._output)
        estimates.read(tenant, request.prompt, self._prompt, self._cached)
        if self._first is not None and self._dispatched is not None and work.attempts == 1:
            further = self._output - 1
            tpot_s = (now - self._first) / further if further > 0 else None
            ttft_s = self._first - self._dispatched
            estimates.workers.timed(work.worker, self._prompt - self._cached, ttft_s, work.batch, tpot_s)

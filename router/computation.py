"""One flight: an entry of the cache, what another router computes, or a slot and the pool.

Whoever computes in the lead tells the others through the store. Where the leader is gone, the answer goes on from the
ids that were heard, at the same seed: the text is the one that the leader would have given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from ..cache.entry import Entry
from ..cache.flight import Flight
from ..cache.keys import CacheKey
from ..cache.port import Ending, Follower, Lead
from ..cache.recorder import Recorder
from ..common.errors import DeadlineExceeded
from ..common.frames import RelayTokens
from ..common.types import Event, Finished, Quality, Started, Timing, Tokens
from .cache_metrics import Lookup
from .dispatch import Work
from .estimates import actual_cost
from .jobs import Job
from .limits import Reservation
from .meter import Meter
from .orders import Order
from .parts import Parts
from .slots import Ticket


class Computation:
    """Made for one flight."""

    def __init__(self, parts: Parts, order: Order, key: CacheKey, model: str, flight: Flight) -> None:
        self._parts = parts
        self._order = order
        self._key = key
        self._flight = flight
        self._model = model
        self._started = Started(order.request.request_id, model, order.request.tier, Quality.EXACT)
        self._begun = parts.clock.now()
        self._work = Work(order.request, order.tenant.name, lambda: flight.deadline)
        self._lead: Lead | None = None
        self._reservation: Reservation | None = None
        self._told = False
        """Whether the flight has begun to tell, and won't be refused any more."""

    async def events(self) -> AsyncGenerator[Event, None]:
        """Started, Tokens…, Finished; the bill is that of whoever computes."""
        found: Entry | Lead | Follower | None = None
        order = self._order
        if order.shared and order.tenant.cache_exact:
            found = await self._parts.store.lease(self._key, order.request.tier)
            self._parts.metrics.cache.looked_up(_kind(found))
        try:
            if isinstance(found, Entry):
                for event in self._hit(found):
                    yield event
                return
            if isinstance(found, Lead):
                self._lead = found
            elif found is not None:
                async with aclosing(self._follow(found)) as told:
                    async for event in told:
                        yield event
                        if isinstance(event, Finished):
                            return
            async with aclosing(self._compute()) as events:
                async for event in events:
                    yield event
        finally:
            if self._lead is not None:
                await asyncio.shield(self._lead.abandon())

    def _hit(self, entry: Entry) -> tuple[Event, ...]:
        self._reserve(0)
        took = Timing("router", "cache", self._parts.clock.now() - self._begun)
        return self._started, entry.tokens(), Finished(entry.reason, entry.hit_usage(), (took,))

    async def _follow(self, follower: Follower) -> AsyncGenerator[Event, None]:
        """What another router tells, to its end; or until this one has to go on, in the lead or alone."""
        self._reserve(0)
        self._told = True
        yield self._started
        try:
            while True:
                told = await follower.next()
                if isinstance(told, Tokens):
                    self._work.ids += told.ids
                    self._work.shown_bytes += len(told.text.encode())
                    yield told
                elif isinstance(told, Ending):
                    yield Finished(told.reason, replace(told.usage, billed_tokens=0))
                    return
                else:
                    self._lead = told
                    return
        finally:
            await asyncio.shield(follower.leave())

    async def _compute(self) -> AsyncGenerator[Event, None]:
        """A slot, the answer or the rest of it from the pool, the bill, the cache."""
        parts, request, tenant = self._parts, self._order.request, self._order.tenant
        prompt = parts.estimates.prompt_tokens(request.prompt)
        expected = parts.estimates.output_tokens(tenant.name, self._model, request.max_tokens)
        self._reserve(prompt + expected)
        meter = Meter(parts, self._order, self._model, prompt, len(self._work.ids))
        ticket: Ticket | None = None
        try:
            ticket = parts.slots.submit(self._job(prompt, expected, self._order.deadline))
            if not self._told:
                yield self._started
            try:
                await ticket.wait()
            except DeadlineExceeded:
                if self._flight.deadline <= parts.clock.now():
                    raise
                # The one who came first ran out of time; somebody with more of it still listens.
                ticket = parts.slots.submit(self._job(prompt, expected, self._flight.deadline))
                await ticket.wait()
            meter.dispatched()
            async with aclosing(self._answer(meter)) as events:
                async for event in events:
                    yield event
        finally:
            if ticket is not None:
                ticket.release(meter.cost)
            if self._reservation is not None:
                parts.limits.settle(self._reservation, meter.used)

    async def _answer(self, meter: Meter) -> AsyncGenerator[Event, None]:
        """From the pool, kept before its end is told: a client that has heard the end may ask again at once."""
        recorder = Recorder()
        async with aclosing(self._parts.dispatcher.answer(self._work)) as frames:
            async for frame in frames:
                if isinstance(frame, RelayTokens):
                    meter.tokens(len(frame.ids))
                    top = frame.top_logprobs
                    tokens = Tokens(frame.ids, frame.text, frame.origin, frame.logprobs, top_logprobs=top)
                    recorder.add(tokens)
                    if self._lead is not None:
                        self._lead.add(tokens)
                    yield tokens
                else:
                    finished = meter.finished(frame, self._work)
                    await self._keep(recorder, finished)
                    yield finished

    async def _keep(self, recorder: Recorder, finished: Finished) -> None:
        keeping = self._order.keeping
        if self._lead is not None:
            await self._lead.finish(Ending(finished.reason, finished.usage), keeping)
        elif self._order.kept and len(recorder.ids) == len(self._work.ids):
            entry = recorder.entry(finished.reason, finished.usage)
            if entry is not None:
                await self._parts.store.put(self._key, entry, keeping)

    def _reserve(self, tokens: float) -> None:
        if self._order.metered and not self._told:
            self._reservation = self._parts.limits.reserve(self._order.tenant, tokens)

    def _job(self, prompt: int, expected: float, deadline: float) -> Job:
        estimates = self._parts.estimates
        reads = estimates.uncached_tokens(self._order.tenant.name, prompt)
        batches = self._parts.registry.batches
        return Job(
            number=self._parts.slots.number(),
            tenant=self._order.tenant.name,
            tier=self._order.request.tier,
            cost=actual_cost(reads, expected),
            deadline=deadline,
            service_s=estimates.service_s(reads, expected, batches),
            first_s=estimates.service_s(reads, 1.0, batches),
            identity=self._order.identity,
            attained=estimates.attained(self._order.request.prompt),
        )


def _kind(found: Entry | Lead | Follower | None) -> Lookup:
    if isinstance(found, Entry):
        return "hit"
    return "followed" if isinstance(found, Follower) else "miss"

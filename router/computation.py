"""One flight: an entry of the cache, what another router computes, or a slot and the pool.

Whoever computes in the lead tells the others through the store. Where the leader is gone, the answer goes on from the
ids that were heard, at the same seed: the text is the one that the leader would have given.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ..cache.entry import Entry
from ..cache.flight import Flight
from ..cache.keys import CacheKey
from ..cache.port import Ending, Follower, Lead
from ..cache.recorder import Recorder
from ..common.errors import DeadlineExceeded
from ..common.frames import RelayTokens
from ..common.types import Finished, Quality, Started, Timing, Tokens
from .cache_metrics import Lookup
from .dispatch import Work
from .jobs import Job
from .limits import Reservation
from .meter import Meter
from .orders import Order
from .parts import Parts
from .sizing import expected_tokens, job_of
from .slots import Ticket


class Computation:
    """Made for one flight."""

    def __init__(self, parts: Parts, order: Order, key: CacheKey | None, model: str, flight: Flight) -> None:
        self._parts = parts
        self._order = order
        self._key = key
        self._flight = flight
        self._model = model
        self._begun = parts.clock.now()
        self._work = Work(order.request, order.tenant.name, lambda: flight.deadline)
        self._lead: Lead | None = None
        self._reservation: Reservation | None = None
        self._told = False
        """Whether the flight has begun to tell, and won't be refused any more."""

    async def run(self) -> None:
        """Tells Started, Tokens…, Finished; the bill is that of whoever computes."""
        found: Entry | Lead | Follower | None = None
        order = self._order
        if self._key is not None and order.shared and order.tenant.cache_exact:
            found = await self._parts.store.lease(self._key, order.request.tier)
            self._parts.metrics.cache.looked_up(_kind(found))
        try:
            if isinstance(found, Entry):
                await self._hit(found)
                return
            if isinstance(found, Lead):
                self._lead = found
            elif found is not None and await self._follow(found):
                return
            await self._compute()
        finally:
            if self._lead is not None:
                await asyncio.shield(self._lead.abandon())

    async def _hit(self, entry: Entry) -> None:
        await self._reserve(0)
        took = Timing("router", "cache", self._parts.clock.now() - self._begun)
        self._start()
        self._flight.tell(entry.tokens())
        self._flight.tell(Finished(entry.reason, entry.hit_usage(), (took,)))

    async def _follow(self, follower: Follower) -> bool:
        """What another router tells. Whether that is all; else this one goes on, in the lead or alone."""
        await self._reserve(0)
        self._start()
        try:
            while isinstance(told := await follower.next(), Tokens):
                self._work.ids += told.ids
                self._work.shown_bytes += len(told.text.encode())
                self._flight.tell(told)
            if isinstance(told, Ending):
                self._flight.tell(Finished(told.reason, replace(told.usage, billed_tokens=0)))
                return True
            self._lead = told
            return False
        finally:
            await asyncio.shield(follower.leave())

    async def _compute(self) -> None:
        """A slot, the answer or the rest of it from the pool, the bill, the cache."""
        parts = self._parts
        prompt, expected = expected_tokens(parts, self._order, self._model)
        await self._reserve(prompt + expected)
        meter = Meter(parts, self._order, self._model, prompt, len(self._work.ids))
        ticket: Ticket | None = None
        try:
            ticket = parts.slots.submit(self._job(prompt, expected, self._order.deadline))
            self._start()
            try:
                await ticket.wait()
            except DeadlineExceeded:
                if self._flight.deadline <= parts.clock.now():
                    raise
                # The one who came first ran out of time; somebody with more of it still listens.
                ticket = parts.slots.submit(self._job(prompt, expected, self._flight.deadline))
                await ticket.wait()
            meter.dispatched(ticket.job)
            await self._answer(meter)
        finally:
            meter.ended()
            if ticket is not None:
                ticket.release(meter.cost)
            if self._reservation is not None:
                parts.limits.settle(self._reservation, meter.used)

    async def _answer(self, meter: Meter) -> None:
        """From the pool. A client that has heard the end may ask again at once, and finds the answer in the cache."""
        recorder = Recorder()

        def tell(frame: RelayTokens) -> None:
            meter.tokens(len(frame.ids))
            tokens = Tokens(frame.ids, frame.text, frame.origin, frame.logprobs, top_logprobs=frame.top_logprobs)
            if self._lead is not None:
                self._lead.add(tokens)
            elif self._order.kept:
                recorder.add(tokens)
            self._flight.tell(tokens)

        finished = meter.finished(await self._parts.dispatcher.answer(self._work, tell), self._work)
        await self._keep(recorder, finished)
        self._flight.tell(finished)

    def _start(self) -> None:
        """The flight begins to tell, unless it did before."""
        if not self._told:
            self._told = True
            order = self._order
            self._flight.tell(Started(order.request.request_id, self._model, order.request.tier, Quality.EXACT))

    async def _keep(self, recorder: Recorder, finished: Finished) -> None:
        keeping = self._order.keeping
        if self._lead is not None:
            self._lead.finish(Ending(finished.reason, finished.usage), keeping)
            self._lead = None
        elif self._key is not None and self._order.kept and len(recorder.ids) == len(self._work.ids):
            entry = recorder.entry(finished.reason, finished.usage)
            if entry is not None:
                await self._parts.store.put(self._key, entry, keeping)

    async def _reserve(self, tokens: float) -> None:
        if self._order.metered and not self._told:
            self._reservation = await self._parts.limits.hold(self._order.tenant, tokens)

    def _job(self, prompt: int, expected: float, deadline: float) -> Job:
        return job_of(self._parts, self._order, prompt, expected, self._parts.slots.number(), deadline)


def _kind(found: Entry | Lead | Follower | None) -> Lookup:
    if isinstance(found, Entry):
        return "hit"
    return "followed" if isinstance(found, Follower) else "miss"

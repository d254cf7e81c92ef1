"""From an admitted request to its events: one flight for all that are identical, and each reader's own view of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable
from dataclasses import dataclass, replace

from ..cache.flight import Flights, Reader
from ..cache.keys import CacheKey
from ..common.errors import Cancelled, DeadlineExceeded, RequestIdReused, TiermeshError
from ..common.types import Event, Finished, FinishReason, ModelInfo, Origin, Started, Tokens, Usage
from .computation import Computation
from .orders import Order
from .parts import Parts


@dataclass(slots=True)
class _Running:
    """Who listens under one request id."""

    order: Order
    readers: set[Reader]


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

    async def answer(self, order: Order, linger_s: float = 0.0) -> AsyncGenerator[tuple[Event, ...], None]:
        """Started, Tokens…, Finished; what is ready at once comes together, with Started what comes within `linger_s`.

        Closing it leaves the flight, which ends when nobody listens any more.
        """
        self._check_id(order)
        model = self._parts.registry.model
        assert model is not None, "the service waits for a model"
        reader = self._join(order, model)
        timer = self._end_in_time(order, reader)
        given = 0
        try:
            if order.metered and not reader.leads:
                await self._parts.limits.hold(order.tenant, 0)
            if linger_s:
                await reader.linger(linger_s, events=2)
            while events := await reader.take():
                given += sum(len(event.ids) for event in events if isinstance(event, Tokens))
                yield tuple(self._own(event, order, reader.leads) for event in events)
        except Cancelled:
            yield (Finished(FinishReason.CANCELLED, Usage(completion_tokens=given)),)
        finally:
            timer.cancel()
            await self._leave(order, reader)

    def _own(self, event: Event, order: Order, leads: bool) -> Event:
        """An event as this very request gets it: its own id, and no bill but for the one who computes."""
        if isinstance(event, Tokens):
            if event.origin is Origin.CACHE:
                self._parts.metrics.tokens("cache", len(event.ids))
        elif isinstance(event, Started):
            if event.request_id != order.request.request_id:
                return replace(event, request_id=order.request.request_id)
        elif not leads:
            return replace(event, usage=replace(event.usage, billed_tokens=0))
        return event

    def cancel(self, tenant: str, request_id: str) -> bool:
        """Ends a running answer; its stream finishes as cancelled."""
        running = self._running.get((tenant, request_id))
        for reader in running.readers if running else ():
            reader.stop(Cancelled("the request was cancelled"))
        return running is not None

    def check(self, order: Order) -> bool:
        """Whether the answer is under way already, for an order that is not given. Raises RequestIdReused."""
        self._check_id(order)
        model = self._parts.registry.model
        return model is not None and self._name(order, _key(order, model)) in self._flights

    def end_all(self, error: TiermeshError) -> None:
        """Ends all answers with an error."""
        for running in self._running.values():
            for reader in running.readers:
                reader.stop(error)

    def _check_id(self, order: Order) -> None:
        running = self._running.get((order.tenant.name, order.request.request_id))
        if running is not None and not running.order.repeats(order):
            raise RequestIdReused("this request id belongs to another running request; use a fresh one")

    def _join(self, order: Order, model: ModelInfo) -> Reader:
        """This request's own view of a flight."""
        key = _key(order, model)
        own = (order.tenant.name, order.request.request_id)
        reader = self._flights.join(
            self._name(order, key),
            order.deadline,
            lambda flight: Computation(self._parts, order, key, model.id, flight).run(),
        )
        if not reader.leads:
            self._parts.metrics.cache.looked_up("joined")
        self._running.setdefault(own, _Running(order, set())).readers.add(reader)
        return reader

    def _name(self, order: Order, key: CacheKey | None) -> Hashable:
        """Of its flight. Without a shareable key that is the request's own."""
        return (key, order.request.tier) if order.shared else (order.tenant.name, order.request.request_id)

    def _end_in_time(self, order: Order, reader: Reader) -> asyncio.TimerHandle:
        delay_s = max(0.0, order.deadline - self._parts.clock.now())
        return asyncio.get_running_loop().call_later(delay_s, _late, reader)

    async def _leave(self, order: Order, reader: Reader) -> None:
        own = (order.tenant.name, order.request.request_id)
        readers = self._running[own].readers
        readers.discard(reader)
        if not readers:
            del self._running[own]
        await reader.leave()


def _key(order: Order, model: ModelInfo) -> CacheKey | None:
    """None for an answer that neither comes from the cache nor goes there."""
    return order.key(model.digests) if order.shared or order.kept else None


def _late(reader: Reader) -> None:
    reader.stop(DeadlineExceeded("the deadline passed before the answer was complete; allow more time"))

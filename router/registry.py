"""The workers: their links, how busy they are, which of them to use."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from ..common.clock import Clock
from ..common.errors import TiermeshError
from ..common.frames import Hello, Load, Welcome
from ..common.relay_link import LinkEvents, RelayLink
from ..common.telemetry import get_logger
from ..common.types import ModelInfo
from .choice import choose, room_of
from .prefixes import Prefixes
from .spacing import Spacing
from .standing import LOOK_S, Standing

_log = get_logger()

_FIRST_LIMIT = 8
"""Requests at once before the first load frame tells the slots."""
_QUEUED_AT_ENGINE = 1
"""Requests kept waiting in the engine, so that a slot never idles for a hop; the rest wait here, in order."""
_MOST_SLOTS = 1024
"""Slots that a worker is believed to have at most, whatever it says."""
_LOW_KV = 0.1
_LEAVE_S = 30.0
"""What answers get that run at a worker which is taken out of the configuration; later they go on at another."""
_LEAVE_LOOK_S = 0.05


class Worker:
    """One worker as the router sees it."""

    def __init__(self, address: str, link: RelayLink) -> None:
        self.address = address
        self.link = link
        self.in_flight = 0
        """Requests of ours that it works on."""
        self._beyond = self._most_beyond = 0
        """Of those, how many came beyond the limit, and how many had at most since the last load frame."""
        self.foreign = False
        """Serves another model than the pool."""
        self.leaving = False
        """Is out of the configuration, and finishes what it has."""
        self.standing = Standing()
        self._limit = _FIRST_LIMIT
        self._room = 0
        self._draining = False
        self._known = False

    @property
    def trial(self) -> bool:
        """Whether it was set aside, and has had no success since."""
        return self.standing.trial

    @property
    def limit(self) -> int:
        """Requests that we give it at once."""
        return 1 if self.trial else self._limit

    @property
    def room(self) -> int:
        """Requests beyond the limit for which it makes room, see `room_of`."""
        return 0 if self.trial else self._room

    def begin(self) -> bool:
        """One more request goes to it. Whether that is beyond its limit, which `end` must be told."""
        beyond = self.in_flight >= self.limit
        self.in_flight += 1
        self._beyond += beyond
        self._most_beyond = max(self._most_beyond, self._beyond)
        return beyond

    def end(self, beyond: bool) -> None:
        """It has a request less."""
        self.in_flight -= 1
        self._beyond -= beyond

    @property
    def there(self) -> bool:
        """Whether it could take requests, reliable or not."""
        return self.link.connected and not (self.leaving or self.foreign or self._draining)

    def usable(self, now: float) -> bool:
        """Whether it may get new requests."""
        return self.there and self.standing.trusted(now)

    def state(self, now: float) -> str:
        """In a word: up, away, leaving, foreign, draining, ejected, silent or trial."""
        if not self.link.connected:
            return "away"
        if self.leaving or self.foreign:
            return "leaving" if self.leaving else "foreign"
        return "draining" if self._draining else self.standing.state(now)

    def loaded(self, load: Load) -> None:
        """Moves the limit by one with each load frame: down when requests wait there or memory runs short, else up.

        It stays between 1 and what the worker says to have, as far as that is to be believed. What was sent beyond it
        may wait there, or have others wait, without telling that the limit is too high.
        """
        self._draining = load.draining
        slots = min(max(load.slots, 0), _MOST_SLOTS)
        ours, self._most_beyond = self._most_beyond, self._beyond
        self._room = room_of(slots, load.kv_free)
        if not self._known:
            self._limit, self._known = slots + _QUEUED_AT_ENGINE, True
        elif load.waiting > _QUEUED_AT_ENGINE + ours or not load.kv_free >= _LOW_KV:  # so that NaN is no room
            self._limit = max(1, min(self._limit, slots) - 1)
        else:
            self._limit = min(self._limit + 1, slots + _QUEUED_AT_ENGINE)

    def lost(self, now: float) -> None:
        """The stream broke; what comes next may have other slots."""
        self._limit, self._room, self._known, self._draining = _FIRST_LIMIT, 0, False, False
        self.standing.broke(now)


class Registry:
    """One pool: workers of one model. All methods belong to the event loop's thread."""

    def __init__(
        self, name: str, token: str | None, clock: Clock, spacing: Spacing, on_change: Callable[[], None]
    ) -> None:
        self._hello = Hello(name)
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        self._clock = clock
        self._spacing = spacing
        self._on_change = on_change
        self._workers: dict[str, Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._partings: dict[str, asyncio.Task[None]] = {}
        self._draw = random.Random()
        self.prefixes = Prefixes()
        self._changed = asyncio.Event()
        self._look: asyncio.TimerHandle | None = None
        self.model: ModelInfo | None = None
        """What the pool serves; stays known while all workers are away."""

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All that are configured."""
        return tuple(self._workers.values())

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What the router shows to workers."""
        return self._metadata

    @property
    def capacity(self) -> int:
        """Requests that the usable workers take at once."""
        return sum(worker.limit for worker in self._usable())

    @property
    def room(self) -> int:
        """Requests of the highest tier for which they make room beyond that."""
        return sum(worker.room for worker in self._usable())

    @property
    def batches(self) -> dict[str, float]:
        """What each usable worker will run of ours when one more request has come, by address."""
        return {w.address: float(min(w.limit, w.in_flight + 1)) for w in self._usable()}

    @property
    def any_usable(self) -> bool:
        """Whether a request could be dispatched."""
        return any(worker.there for worker in self.workers)

    def follow(self, addresses: Iterable[str]) -> None:
        """Connects to these workers; others get nothing new, and are let go when they have answered what they have."""
        wanted = list(addresses)
        for address, worker in list(self._workers.items()):
            worker.leaving = address not in wanted
            if worker.leaving and not worker.in_flight:
                self._let_go(address)
            elif worker.leaving and address not in self._partings:
                self._partings[address] = asyncio.create_task(self._see_off(worker))
        for address in wanted:
            if address not in self._workers:
                self._add(address)
        if self._look is None:
            self._look_later()
        self._notify()

    async def close(self) -> None:
        """Ends all links."""
        if self._look is not None:
            self._look.cancel()
        tasks = [*self._tasks.values(), *self._partings.values()]
        self._tasks.clear()
        self._partings.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def pick(self, avoid: frozenset[str] = frozenset(), keys: Sequence[int] = ()) -> Worker | None:
        """A usable worker by load and by what it knows of the prompt with these keys (see `Prefixes`).

        Those to avoid are taken only when there is no other.
        """
        usable = self._usable()
        fresh = [worker for worker in usable if worker.address not in avoid] or usable
        return choose(fresh, self.prefixes.known(keys), self._draw)

    async def wait_usable(self, timeout_s: float) -> bool:
        """Waits until a worker is usable; False when none is in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.any_usable:
                    self._changed.clear()
                    await self._changed.wait()
        return self.any_usable

    def failed(self, worker: Worker) -> None:
        """A request failed at a worker. The last one that is left is never set aside: trying is better than nothing."""
        now = self._clock.now()
        others = any(other.usable(now) for other in self.workers if other is not worker)
        if others and worker.standing.failed(now):
            self._set_aside(worker, "failures", now)

    def succeeded(self, worker: Worker) -> None:
        """An answer came through."""
        if worker.standing.succeeded():
            _log.info("worker_back", worker=worker.address)
            self._notify()

    @property
    def in_flight(self) -> int:
        """Requests of ours that the workers have."""
        return sum(worker.in_flight for worker in self.workers)

    def _usable(self) -> list[Worker]:
        """Those that are to be relied on; when there are none, all that are there: trying is better than nothing."""
        now = self._clock.now()
        there = [worker for worker in self._workers.values() if worker.there]
        return [worker for worker in there if worker.standing.trusted(now)] or there

    def _set_aside(self, worker: Worker, cause: str, now: float) -> None:
        seconds = worker.standing.aside_until - now
        _log.warning("worker_ejected", worker=worker.address, cause=cause, seconds=round(seconds, 1))
        self._notify()
        # Its return is an event by time alone. The timer holds nothing, and one that fires late does no harm.
        asyncio.get_running_loop().call_later(seconds + 0.01, self._notify)

    def _look_later(self) -> None:
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_around)

    def _look_around(self) -> None:
        """Finds workers that say nothing any more: they get nothing new, and after a while their answers go on at
        others, if there are any."""
        self._look_later()
        changed = [worker for worker in self.workers if worker.standing.look(worker.link.messages)]
        for worker in changed:
            _log.warning("worker_silent" if worker.standing.silent else "worker_speaks", worker=worker.address)
        if changed:
            self._notify()
        for worker in self.workers:
            if worker.standing.stuck and worker not in self._usable():
                worker.link.drop()

    async def _see_off(self, worker: Worker) -> None:
        """Waits until a worker that leaves has nothing of ours, or for long enough; unless it is wanted again."""
        try:
            ends = self._clock.now() + _LEAVE_S
            while worker.leaving and worker.in_flight and self._clock.now() < ends:  # noqa: ASYNC110 - counts have no event
                await asyncio.sleep(_LEAVE_LOOK_S)
            if worker.leaving:
                self._let_go(worker.address)
                self._notify()
        finally:
            self._partings.pop(worker.address, None)

    def _let_go(self, address: str) -> None:
        self._tasks.pop(address).cancel()
        del self._workers[address]
        self.prefixes.forget(address)

    def _add(self, address: str) -> None:
        events = LinkEvents(
            welcome=lambda welcome: self._welcomed(address, welcome),
            load=lambda load: self._loaded(address, load),
            lost=lambda error: self._lost(address, error),
        )
        spacing = self._spacing
        link = RelayLink(address, self._hello, metadata=self._metadata, events=events, pause_s=lambda: spacing.pause_s)
        self._workers[address] = Worker(address, link)
        self._tasks[address] = asyncio.create_task(link.run())

    def _welcomed(self, address: str, welcome: Welcome) -> None:
        worker = self._workers.get(address)
        if worker is None:
            return
        model = welcome.models[0] if welcome.models else None
        now = self._clock.now()
        others = [other for other in self.workers if other is not worker and other.usable(now)]
        if self.model is None or not others:
            self.model = model or self.model
        worker.foreign = model is None or self.model is None or model.digests != self.model.digests
        if worker.foreign:
            _log.error("worker_serves_another_model", worker=address, model=model.id if model else "")
        worker.standing.up(now)
        if worker.standing.trusted(now):
            self._notify()
        else:
            self._set_aside(worker, "flaps", now)

    def _loaded(self, address: str, load: Load) -> None:
        if worker := self._workers.get(address):
            before = (worker.limit, worker.room, worker.there)
            worker.loaded(load)
            if before != (worker.limit, worker.room, worker.there):
                self._notify()

    def _lost(self, address: str, error: TiermeshError) -> None:
        _log.warning("worker_lost", worker=address, reason=error.reason)
        if worker := self._workers.get(address):
            worker.lost(self._clock.now())
            self.prefixes.forget(address)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._on_change()

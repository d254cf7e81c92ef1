"""One answer from the pool, whatever happens to single workers.

A worker that dies, drains or is lost is replaced by another that goes on from the ids already given, with the same
seed: since the noise depends on (seed, index, token) alone, the text is the one that the first worker would have given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ..common.clock import Clock
from ..common.errors import DeadlineExceeded, InternalError, LeaseExpired, NoWorkers, TiermeshError, Unavailable
from ..common.frames import CloseReason, Open, RelayFinished, RelayTokens, SessionMode
from ..common.relay_link import LinkSession
from ..common.telemetry import get_logger
from ..common.types import Request
from .prefixes import keys_of
from .registry import Registry, Worker
from .retries import RetryBudget
from .spacing import Spacing

_log = get_logger()

MAX_BARREN_ATTEMPTS = 3
"""Attempts in a row that brought no token; a request that kills each worker it meets must stop somewhere."""

WORKER_GRACE_S = 5.0
"""How long a running answer waits for a worker when all are gone."""


@dataclass(slots=True)
class Work:
    """An answer under way: what to ask for, and how far it has come."""

    request: Request
    tenant: str
    deadline: Callable[[], float]
    """Monotonic; may move later while others join, see `Flight.deadline`."""
    ids: list[int] = field(default_factory=list)
    """All answer ids so far."""
    shown_bytes: int = 0
    """Bytes of their text that were shown."""
    prefix: tuple[int, ...] | None = None
    """Keys of the prompt's blocks, see `Prefixes`; None until they are needed."""
    attempts: int = 0
    barren: int = 0
    worker: str = ""
    """Where the last attempt went."""
    batch: float = 0.0
    """What that worker ran of ours, this among it: then, and after the end the mean of then and the end."""

    def add(self, frame: RelayTokens) -> None:
        """More of the answer."""
        self.ids += frame.ids
        self.shown_bytes += len(frame.text.encode())
        self.barren = 0

    def opening(self, mode: SessionMode, now: float) -> Open:
        """The frame that begins or resumes it at a worker."""
        return Open(
            session=0,  # both numbers are the link's own
            attempt=0,
            request=self.request,
            mode=mode,
            tenant=self.tenant,
            delivered_ids=tuple(self.ids),
            delivered_bytes=self.shown_bytes,
            deadline_left_s=max(self.deadline() - now, 0.001),
        )


class Place:
    """A session at a worker; closing it frees both."""

    def __init__(self, worker: Worker, session: LinkSession) -> None:
        self.worker = worker
        self.session = session
        self._beyond = worker.begin()
        self._open = True

    def close(self, reason: CloseReason) -> None:
        """Ends the session; safe any number of times."""
        if self._open:
            self._open = False
            self.worker.end(self._beyond)
            self.session.close(reason)

    def ended(self) -> None:
        """The worker has ended the session."""
        if self._open:
            self._open = False
            self.worker.end(self._beyond)
            self.session.ended()


class Dispatcher:
    """Places work at workers."""

    def __init__(
        self, registry: Registry, clock: Clock, spacing: Spacing, on_resume: Callable[[], None] = lambda: None
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._on_resume = on_resume
        self.retries = RetryBudget()
        self._spacing = spacing

    async def answer(self, work: Work, tell: Callable[[RelayTokens], None]) -> RelayFinished:
        """Tells the rest of an answer as it comes, and returns its end; cancelling it cancels the work upstream.

        Raises the worker's error, or NoWorkers.
        """
        place: Place | None = None
        try:
            while True:
                try:
                    place = await self.place(work, SessionMode.GENERATE, place)
                    return await self._hear(work, place, tell)
                except TiermeshError as error:
                    self.failed(work, place, error)
        finally:
            if place is not None:
                place.close(CloseReason.CANCELLED)

    async def place(self, work: Work, mode: SessionMode, before: Place | None = None) -> Place:
        """Opens a session at the best worker, another one than `before`. Raises NoWorkers or DeadlineExceeded."""
        avoid: frozenset[str] = frozenset()
        if before is not None:
            before.close(CloseReason.CANCELLED)
            avoid = frozenset([before.worker.address])
        while True:
            left_s = work.deadline() - self._clock.now()
            if left_s <= 0:
                raise DeadlineExceeded("the deadline passed before a worker could go on; allow more time")
            if work.prefix is None:
                choice = len(self._registry.workers) > 1
                work.prefix = keys_of(work.tenant, work.request.prompt) if choice else ()
            worker = self._registry.pick(avoid, work.prefix)
            if worker is None:
                if not await self._registry.wait_usable(min(left_s, WORKER_GRACE_S)):
                    raise NoWorkers("no worker is ready; try again soon", retry_after_s=1.0)
                continue
            place = Place(worker, worker.link.session())
            try:
                place.session.open(work.opening(mode, self._clock.now()))
            except Unavailable:
                place.close(CloseReason.CANCELLED)
                await asyncio.sleep(0)  # the link went down in this very turn; the registry hears of it in the next
                continue
            if not work.attempts:
                self.retries.asked(self._clock.now(), self._registry.in_flight)
            self._registry.prefixes.sent(work.prefix, worker.address)
            work.attempts += 1
            work.worker, work.batch = worker.address, float(worker.in_flight)
            if work.attempts > 1:
                self._on_resume()
                _log.info("resumed", request_id=work.request.request_id, worker=worker.address, delivered=len(work.ids))
            return place

    async def _hear(self, work: Work, place: Place, tell: Callable[[RelayTokens], None]) -> RelayFinished:
        while True:
            frame = await place.session.receive(self._spacing.gap_s)
            if isinstance(frame, RelayTokens):
                if place.worker.trial:
                    self._registry.succeeded(place.worker)
                work.add(frame)
                tell(frame)
            elif isinstance(frame, RelayFinished):
                work.batch = (work.batch + place.worker.in_flight) / 2
                self.done(place)
                return frame

    def done(self, place: Place) -> None:
        """The answer is complete."""
        self._registry.succeeded(place.worker)
        place.ended()

    def failed(self, work: Work, place: Place | None, error: TiermeshError) -> None:
        """Decides after an error: returns when another attempt makes sense, else raises it."""
        if isinstance(error, NoWorkers) or place is None:
            raise error
        if isinstance(error, DeadlineExceeded):
            # The worker's deadline was that of whoever came first; somebody with more time may have joined since.
            if work.deadline() - self._clock.now() > 0.01:
                return
            raise error
        if isinstance(error, Unavailable | InternalError) and not isinstance(error, LeaseExpired):
            self._registry.failed(place.worker)  # a worker that only forgot a session is well
        if not isinstance(error, Unavailable):
            raise error
        work.barren += 1
        if work.barren >= MAX_BARREN_ATTEMPTS:
            raise error
        if isinstance(error, LeaseExpired):
            return  # nothing failed that another attempt could make worse
        if not self.retries.spend(self._clock.now(), self._registry.in_flight):
            _log.warning("retry_budget_spent", request_id=work.request.request_id, worker=place.worker.address)
            raise Unavailable(
                "a worker failed, and as many requests as may be are tried again already; try again soon",
                retry_after_s=1.0,
            ) from error

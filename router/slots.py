"""Carries out what the scheduler decides: futures for those who wait, a timer for what time alone decides."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from ..common.clock import Clock
from ..common.errors import TiermeshError
from .jobs import Decision, Dispatch, Job
from .scheduler import Scheduler

_TIMER_SLACK_S = 0.001
"""The event loop's timers are good to a millisecond; firing early would only spin."""


class Ticket:
    """A place in the queue, then a slot."""

    def __init__(self, slots: Slots, job: Job, granted: asyncio.Future[None]) -> None:
        self.job = job
        self._slots = slots
        self._granted = granted
        self._released = False

    @property
    def running(self) -> bool:
        """Whether the slot is ours."""
        return self._granted.done() and not self._released

    async def wait(self) -> None:
        """Returns when the job has its slot; raises the refusal."""
        if not self._granted.done():
            await asyncio.shield(self._granted)
        self._granted.result()

    def release(self, actual_cost: float) -> None:
        """Gives the slot, or the place in the queue, back; safe to call at any time, any number of times."""
        if not self._released:
            self._released = True
            self._slots._release(self.job, self._granted, actual_cost)


class Slots:
    """The scheduler on the event loop."""

    def __init__(self, scheduler: Scheduler, clock: Clock, changed: Callable[[str], None] = lambda _: None) -> None:
        self.scheduler = scheduler
        self._changed = changed
        """Hears whose jobs came or went."""
        self._clock = clock
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None

    def number(self) -> int:
        """A fresh job number."""
        return next(self._numbers)

    def submit(self, job: Job) -> Ticket:
        """Queues a job; raises the refusal if there is one at once."""
        granted = asyncio.get_running_loop().create_future()
        self._waiting[job.number] = granted
        self._carry_out(self.scheduler.arrive(job, self._clock.now()))
        self._changed(job.tenant)
        self.turn()
        if granted.done() and (error := granted.exception()) is not None:
            raise error
        return Ticket(self, job, granted)

    def resize(self, slots: int, room: int) -> None:
        """The workers take more or fewer at once now, and make room for so many of the highest tier."""
        self.scheduler.slots, self.scheduler.room = slots, room
        self.turn()

    def refuse_all(self, error: TiermeshError) -> None:
        """Refuses all that wait."""
        self._carry_out(self.scheduler.refuse_all(error))

    def turn(self) -> None:
        """Lets the scheduler decide, and comes back when it must again."""
        self._carry_out(self.scheduler.decide(self._clock.now()))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (wake_at := self.scheduler.wake_at) is not None:
            delay_s = max(0.0, wake_at - self._clock.now()) + _TIMER_SLACK_S
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.turn)

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _carry_out(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            granted = self._waiting.pop(decision.job)
            if isinstance(decision, Dispatch):
                granted.set_result(None)
            else:
                granted.set_exception(decision.error)
                granted.exception()  # whoever waits sees it; one who has left need not

    def _release(self, job: Job, granted: asyncio.Future[None], actual_cost: float) -> None:
        now = self._clock.now()
        if not granted.done():
            self.scheduler.cancel(job.number, now)
            del self._waiting[job.number]
            granted.cancel()
        elif granted.exception() is None:
            self.scheduler.finish(job.number, actual_cost, now)
        self._changed(job.tenant)
        self.turn()

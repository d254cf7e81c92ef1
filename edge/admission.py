"""What this box can do at once: a bound on running generations, a bounded queue, and how long the queue takes."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from ..common.clock import Clock
from ..common.errors import Overloaded
from .chooser import RunningMean


class Admission:
    """Places for generations on the edge model. All methods belong to the event loop's thread."""

    def __init__(self, places: int, clock: Clock, queued_per_place: int = 8) -> None:
        self._places = places
        self._max_waiting = places * queued_per_place
        self._clock = clock
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._held_s = RunningMean()

    @property
    def running(self) -> int:
        """Places taken."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def wait_s(self) -> float:
        """How long a request that comes now would wait, by the mean time that places were held."""
        if self._running < self._places:
            return 0.0
        return (len(self._waiting) + 1) * self._held_s.get(0.0) / self._places

    def full(self) -> bool:
        """Whether the queue takes nobody more."""
        return self._running >= self._places and len(self._waiting) >= self._max_waiting

    async def enter(self) -> float:
        """Waits for a place and returns when it was taken, for `leave`. Raises Overloaded when the queue is full."""
        if self._running >= self._places:
            if self.full():
                raise Overloaded(
                    f"this edge node runs {self._places} generations and {len(self._waiting)} wait; try again later",
                    retry_after_s=max(0.05, self.wait_s()),
                )
            await self._turn()
        else:
            self._running += 1
        return self._clock.now()

    def leave(self, entered: float) -> None:
        """Gives a place back, to the one who waits longest."""
        self._held_s.add(self._clock.now() - entered)
        self._hand_on()

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    self._waiting.remove(turn)
            else:
                self._hand_on()  # The place had come, but nobody takes it.
            raise

    def _hand_on(self) -> None:
        """The place goes straight to the next in line, so that nobody who comes now is faster."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1

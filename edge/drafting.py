"""Drafting units on the model's own thread, so that the event loop stays free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from .model import SequenceState
from .sampling import Picker
from .units import Borders, Unit


@dataclass(frozen=True, slots=True)
class Doubt:
    """Who wants to know, while a unit is still drafted, that it will be asked about."""

    below: float
    """Product of the probabilities so far under which that is certain."""
    tell: Callable[[], None]
    """Called at most once per unit, on the event loop."""


class Draft(Protocol):
    """The edge model at work on one answer."""

    prefill_s: float
    """Spent on the prompt so far."""
    decode_s: float
    """Spent on drafted tokens so far."""
    tokens: int
    """Drafted so far."""

    async def unit(self, known: Sequence[int], room: int, doubt: Doubt | None = None) -> Unit:
        """The next unit after all known ids (prompt and answer), at most `room` ids long."""
        ...

    def close(self) -> None:
        """Gives the KV cache back; safe at any time, any number of times."""
        ...


class _Watch:
    """Tells a doubt as soon as it is one; used on the model's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, doubt: Doubt) -> None:
        self._loop = loop
        self._doubt: Doubt | None = doubt
        self._product = 1.0

    def see(self, probability: float) -> None:
        """Of the unit's next id."""
        self._product *= probability
        if self._doubt and self._product < self._doubt.below:
            self._loop.call_soon_threadsafe(self._doubt.tell)
            self._doubt = None


class LocalDraft:
    """Drafts with the onnxruntime model. Ids that were drafted and not kept are rolled back by the next call."""

    def __init__(
        self,
        state: SequenceState,
        picker: Picker,
        borders: Borders,
        thread: Executor,
        release: Callable[[SequenceState], None],
    ) -> None:
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.tokens = 0
        self._state = state
        self._picker = picker
        self._borders = borders
        self._thread = thread
        self._release: Callable[[SequenceState], None] | None = release
        self._running: asyncio.Future[Unit] | None = None
        self._interrupted = False

    async def unit(self, known: Sequence[int], room: int, doubt: Doubt | None = None) -> Unit:
        """The next unit; when cancelled, the thread stops at the next token."""
        loop = asyncio.get_running_loop()
        watch = _Watch(loop, doubt) if doubt else None
        self._running = loop.run_in_executor(self._thread, self._unit, known, room, watch)
        try:
            # Shielded: a cancelled future would be forgotten while the thread still writes to the KV cache.
            return await asyncio.shield(self._running)
        except asyncio.CancelledError:
            self._interrupted = True
            raise

    def close(self) -> None:
        """Gives the KV cache back, once the thread is done with it."""
        release, self._release = self._release, None
        if release is None:
            return
        self._interrupted = True
        if self._running is None or self._running.done():
            release(self._state)
        else:
            self._running.add_done_callback(lambda done: (done.exception(), release(self._state)))

    def _unit(self, known: Sequence[int], room: int, watch: _Watch | None) -> Unit:
        """Runs on the model's thread. An interrupted unit is cut short; nobody looks at it."""
        state, started = self._state, time.perf_counter()
        fresh = not state.ids
        if not self._interrupted:
            state.catch_up(known)
        begun = time.perf_counter()
        picks = [self._picker.pick(state)]
        ids = [picks[0].id]
        while len(ids) < room and not (self._borders.closes(ids) or self._interrupted):
            if watch:
                watch.see(picks[-1].probability)
            state.step(ids[-1])
            picks.append(self._picker.pick(state))
            ids.append(picks[-1].id)
        self._count(begun - started, time.perf_counter() - begun, fresh, len(ids))
        return Unit(tuple(ids), tuple(pick.probability for pick in picks), tuple(pick.logprob for pick in picks))

    def _count(self, caught_up_s: float, decoded_s: float, fresh: bool, tokens: int) -> None:
        if fresh:
            self.prefill_s += caught_up_s
            self.decode_s += decoded_s
        else:
            self.decode_s += caught_up_s + decoded_s
        self.tokens += tokens

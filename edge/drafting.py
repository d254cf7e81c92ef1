"""Drafting units on the model's own thread, so that the event loop stays free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from .decoding import drafted_picks, plain_picks
from .exits import ExitAccount
from .sampling import Pick, Picker, unit_of
from .sequence import SequenceState
from .split import MAX_NEW, SplitState
from .units import Borders, Unit

_SURE = 0.9
"""From this probability on a token leaves its unit's trust alone, and the time to judge it is saved."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Who wants to know, while a unit is still drafted, that it will be asked about."""

    holds: Callable[[Unit], bool]
    """Whether a unit that begins like this will be asked about; called on the model's thread."""
    tell: Callable[[], None]
    """Called at most once per unit, on the event loop."""
    enough: int
    """Tokens of a unit in doubt from which on more are not worth their time. It is cut there, and whoever is to decide
    on it sees that: of 211 units of code in doubt three would have been shown alone in the end."""


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
    """Tells a doubt as soon as there is one; used on the model's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, doubt: Doubt) -> None:
        self._loop = loop
        self._doubt = doubt
        self._raised = False

    def enough(self, picks: Sequence[Pick]) -> bool:
        """Sees all of the unit so far; whether it is in doubt, and long enough for that.

        Only its first token or an unsure one can raise a doubt.
        """
        unsure = len(picks) == 1 or picks[-1].probability < _SURE
        if not self._raised and unsure and self._doubt.holds(unit_of(picks, ends=False)):
            self._loop.call_soon_threadsafe(self._doubt.tell)
            self._raised = True
        return self._raised and len(picks) >= self._doubt.enough


class LocalDraft:
    """Drafts with the onnxruntime model. Ids that were drafted and not kept are rolled back by the next call."""

    def __init__(
        self,
        state: SequenceState,
        picker: Picker,
        borders: Borders,
        thread: Executor,
        release: Callable[[SequenceState], None],
        exits: ExitAccount | None = None,
    ) -> None:
        """`exits` decides on drafts from the inner exit, where `state` has one."""
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.tokens = 0
        self._state = state
        self._picker = picker
        self._borders = borders
        self._thread = thread
        self._exits = exits
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
        """Runs on the model's thread. An interrupted unit is cut short or empty; nobody looks at it."""
        state, started = self._state, time.perf_counter()
        fresh = not state.ids
        if self._interrupted:
            return unit_of((), ends=False)
        new = state.roll_back(known)
        if self._exits is None or len(new) > MAX_NEW:
            state.catch_up(known)
            new = ()
        begun = time.perf_counter()
        picks: list[Pick] = []
        ids: list[int] = []
        cut = False
        for pick in self._picks(new, room):
            picks.append(pick)
            ids.append(pick.id)
            if not self._goes_on(ids, room):
                break
            if watch and watch.enough(picks):
                cut = True
                break
        self._count(begun - started, time.perf_counter() - begun, fresh, len(ids))
        return unit_of(picks, ends=ids[-1] in self._borders.end_ids, cut=cut)

    def _picks(self, new: Sequence[int], room: int) -> Iterator[Pick]:
        """The full depth's picks; `new` are known ids that are still to be run."""
        if self._exits is None or not isinstance(self._state, SplitState):
            return plain_picks(self._state, self._picker)
        return drafted_picks(self._state, self._picker, self._exits, new, lambda ids: self._goes_on(ids, room))

    def _goes_on(self, ids: Sequence[int], room: int) -> bool:
        """Whether the unit is not whole with these ids."""
        return len(ids) < room and not (self._borders.closes(ids) or self._interrupted)

    def _count(self, caught_up_s: float, decoded_s: float, fresh: bool, tokens: int) -> None:
        if fresh:
            self.prefill_s += caught_up_s
            self.decode_s += decoded_s
        else:
            self.decode_s += caught_up_s + decoded_s
        self.tokens += tokens

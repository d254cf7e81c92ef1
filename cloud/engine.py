"""The engine: a thread that turns requests into answers, step by step.

Its loop is: take commands, plan, run, advance, publish. Other threads reach it through a queue of commands; outputs of
a whole step go back to the event loop in one call. So neither gRPC nor a slow reader ever holds up a step.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from collections.abc import Sequence as Ids
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

from ..common.clock import Clock, MonotonicClock
from ..common.config import TierConfig
from ..common.errors import DeadlineExceeded, Draining, InternalError, LeaseExpired, Overloaded, TiermeshError
from ..common.telemetry import get_logger
from ..common.text import Text
from ..common.types import FinishReason
from .agenda import Agenda
from .blocks import BlockPool
from .drafting import add_drafts
from .meter import EngineLoad, Meter
from .outputs import Ended, Failed, Output, Scored
from .prefix import Chain, Salts
from .progress import Progress, Stages
from .request import Choice, Job, Sequence, State
from .runner import Outcome, Runner
from .scheduler import Scheduler, Work
from .submission import Submission
from .tiers import Tiers

_log = get_logger()

Sink = Callable[[Output], None]
"""Takes the outputs of one sequence, in order, on the event loop's thread; must not block."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine."""

    slots: int = 16
    """Sequences that run at once."""
    step_tokens: int = 128
    """Tokens of one step at most; a longer prompt is run in chunks."""
    max_waiting: int = 1024
    """Beyond this, requests are refused."""
    session_lease_s: float = 30.0
    """A session that has no ask for so long ends with LeaseExpired, and all that it holds is free."""
    tiers: tuple[TierConfig, ...] = (TierConfig("standard", ttft_s=0.2, deadline_s=30.0, min_share=0.0),)
    """Highest first."""
    prefix_cache: bool = True
    """Whether a tenant's prompts find what was computed for the same beginning before."""
    ngram_drafts: bool = True
    """Whether sequences that generate draft what followed the same ids before."""


@dataclass(slots=True)
class _Entry:
    progress: Progress
    sink: Sink


class Engine:
    """One model on one device. `start` comes first; `submit`, `ask` and `cancel` may come from any thread."""

    def __init__(self, runner: Runner, text: Text, config: EngineConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.tiers = Tiers(config.tiers)
        self.on_load: Callable[[], None] = lambda: None
        """Called on the event loop's thread when the numbers of running or waiting sequences changed."""
        self.pool_tokens = runner.pool_blocks * runner.block_size
        self._runner = runner
        self._text = text
        self._clock = clock or MonotonicClock()
        self._scheduler = Scheduler(BlockPool(runner.pool_blocks, runner.block_size), config.slots, config.step_tokens)
        self._meter = Meter(config.slots)
        self._salts = Salts()
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._entries: dict[int, _Entry] = {}
        self._outputs: list[tuple[Sink, Output]] = []
        self._deadlines = Agenda()
        self._foreseen = Agenda()
        """When new sessions that nobody asks begin to read ahead."""
        self._numbers = itertools.count(1)
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def load(self) -> EngineLoad:
        """How busy it was after the latest step."""
        return self._meter.load

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the thread; outputs are delivered on `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Ends all sequences with `Draining` and the thread; waits for the step in progress."""
        self._commands.put(self._stop)
        self._thread.join()

    def submit(self, submission: Submission, sink: Sink) -> int:
        """Queues a request and returns its number.

        Raises InvalidRequest for one that could never run, Overloaded when too many wait, Draining when it stops.
        """
        if self._stopping:
            raise Draining("this worker is stopping; another one may answer")
        submission.check_fits(self._runner.max_context, self.pool_tokens)
        waiting = self.load.waiting + self._commands.qsize()
        if waiting >= self.config.max_waiting:
            raise Overloaded(
                f"{waiting} requests wait at this worker, its limit; try another one, or later",
                retry_after_s=max(0.1, waiting / self.config.slots * self.load.answer_s),
            )
        number = next(self._numbers)
        self._commands.put(partial(self._submit, number, submission, sink, self._clock.now()))
        return number

    def ask(self, number: int, alone: Ids[int], draft: Ids[int], hand_over: bool) -> None:
        """Has a session's draft verified; ignored when the session ended meanwhile."""
        self._commands.put(partial(self._ask, number, tuple(alone), tuple(draft), hand_over))

    def cancel(self, number: int) -> None:
        """Ends a sequence with `Ended(CANCELLED)` before the next step; ignored when it ended meanwhile."""
        self._commands.put(partial(self._cancel, number))

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits; sessions between two asks don't count."""
        return bool(self.load.running or self.load.waiting or not self._commands.empty())

    # What follows runs on the engine's thread.

    def _work(self) -> None:
        while not self._stopping:
            if not self._scheduler.has_work:
                self._wait()
            self._turn()

    def _wait(self) -> None:
        """For a command, or for something that is due."""
        with suppress(Empty):
            self._commands.get(timeout=self._patience())()

    def _turn(self) -> None:
        """One step, and what comes before and after it."""
        began = self._clock.now()
        self._take_commands()
        self._expire()
        self._read_ahead()
        plan = self._plan()
        self._meter.spent(schedule=self._clock.now() - began)
        if plan:
            self._step(plan)
        self._publish()

    def _plan(self) -> list[Work]:
        plan = self._scheduler.plan(self._clock.now())
        if not self.config.ngram_drafts:
            return plan
        budget = self._scheduler.step_tokens - sum(work.count for work in plan)
        return add_drafts(plan, budget, self._scheduler.pool, self._meter.drafts)

    def _take_commands(self) -> None:
        with suppress(Empty):
            while not self._stopping:
                self._commands.get_nowait()()

    def _patience(self) -> float | None:
        """Seconds until a deadline or the end of a session's lease, or until one reads ahead; None without any."""
        due = [moment for agenda in (self._deadlines, self._foreseen) if (moment := agenda.next()) is not None]
        due += [s.last_used + self.config.session_lease_s for s in itertools.islice(self._scheduler.idle, 1)]
        return max(0.0, min(due) - self._clock.now()) if due else None

    def _submit(self, number: int, submission: Submission, sink: Sink, submitted: float) -> None:
        chain = None
        if self.config.prefix_cache and submission.job is not Job.SCORE:
            chain = Chain(self._salts.of(submission.tenant), self._runner.block_size)
        tier = submission.tier
        sequence = submission.sequence(number, submitted, self.tiers.place(tier), self.tiers.deadline_s(tier), chain)
        text = self._text.detokenizer(submission.stop, submission.delivered_ids, submission.delivered_bytes)
        progress = Progress(sequence, partial(self._text.detokenizer, submission.stop), text, Stages(submitted))
        self._entries[number] = _Entry(progress, sink)
        if sequence.deadline is not None:
            self._deadlines.add(sequence.deadline, number)
        if submission.job is Job.VERIFY:
            self._scheduler.park(sequence, submitted)
            self._foreseen.add(self._clock.now() + self.load.step_s, number)
        else:
            self._scheduler.add(sequence)
            self._emit(sequence, progress.begin(submitted))

    def _read_ahead(self) -> None:
        """Sessions whose ask has not come within the time of a step begin to read what they know.

        Reading apart from the ask costs one pass more, so it is worth waiting as long as a pass takes, and no longer
        (the rule for renting skis: at most twice the best). At once, it made a fast edge's first ask 8 ms slower.
        """
        for number in self._foreseen.due(self._clock.now()):
            if entry := self._entries.get(number):
                sequence = entry.progress.sequence
                if sequence.state is State.IDLE and not sequence.asked:
                    self._scheduler.add(sequence)

    def _ask(self, number: int, alone: tuple[int, ...], draft: tuple[int, ...], hand_over: bool) -> None:
        entry = self._entries.get(number)
        if entry is None:
            return
        progress, sequence = entry.progress, entry.progress.sequence
        if sequence.job is not Job.VERIFY or sequence.asked:
            self._fail(sequence, InternalError("an ask came before the verdict on the last one"))
            return
        progress.hand_over = hand_over
        progress.stages.computing_s = 0.0
        sequence.ask(alone, draft)
        if sequence.state is State.IDLE:
            self._scheduler.add(sequence)

    def _cancel(self, number: int) -> None:
        if entry := self._entries.get(number):
            sequence = entry.progress.sequence
            timings = entry.progress.stages.timings(self._clock.now())
            cached = sequence.cached_prompt_tokens
            self._emit(sequence, [Ended(FinishReason.CANCELLED, sequence.answer_length, timings, cached)])

    def _stop(self) -> None:
        self._stopping = True
        for sequence in self._scheduler.everyone():
            self._fail(sequence, Draining("this worker is stopping; another one may answer"))

    def _expire(self) -> None:
        now = self._clock.now()
        for number in self._deadlines.due(now):
            if entry := self._entries.get(number):
                self._fail(entry.progress.sequence, DeadlineExceeded("the deadline passed at the worker"))
        self._deadlines.sweep(self._entries)
        lease_s = self.config.session_lease_s
        for sequence in self._scheduler.unused_since(now - lease_s):
            self._fail(sequence, LeaseExpired(f"no ask came for {lease_s:g} s; open the session with all ids given"))

    def _step(self, plan: list[Work]) -> None:
        """Runs a plan and takes in what it gave. A failing pass ends the sequences in it, not the engine."""
        began = self._clock.now()
        try:
            outcome = self._runner.run(plan)
        except Exception:  # noqa: BLE001 - the top of a step; logged, and the engine goes on
            _log.exception("step failed", sequences=len(plan))
            for work in plan:
                self._spoil(work.sequence)
            return
        self._take_in(plan, outcome, began)

    def _take_in(self, plan: list[Work], outcome: Outcome, began: float) -> None:
        """The results of a pass; those of sequences that have left the step since are dropped."""
        now = self._clock.now()
        self._scheduler.observe(plan, now - began)
        self._meter.step(plan, outcome, now - began)
        for work, choices, finite in zip(plan, outcome.choices, outcome.finite, strict=True):
            sequence = work.sequence
            if not self._scheduler.current(work):
                continue
            self._time(sequence, began, now)
            if finite:
                self._advance(work, choices, now)
            else:
                _log.error("values are not finite", sequence=sequence.id, position=sequence.computed)
                self._spoil(sequence)
        self._meter.spent(publish=self._clock.now() - now)

    def _time(self, sequence: Sequence, began: float, now: float) -> None:
        stages = self._entries[sequence.id].progress.stages
        stages.computing_s += now - began
        if stages.started is None:
            stages.started = began
            self._meter.began(sequence)

    def _advance(self, work: Work, choices: list[Choice], now: float) -> None:
        sequence = work.sequence
        outputs = self._entries[sequence.id].progress.advance(work, choices, now)
        self._scheduler.publish(sequence)
        self._emit(sequence, outputs)
        if sequence.job is Job.VERIFY and not (sequence.asked or sequence.pending):
            self._scheduler.rest(sequence, now)

    def _spoil(self, sequence: Sequence) -> None:
        """Ends a sequence whose KV can't be trusted; nobody may read what it leaves behind.

        What it had published before was finite, and may be others' too.
        """
        self._runner.scrub(tuple(sequence.blocks[sequence.published :]))
        self._fail(sequence, InternalError("the model failed on this request; the worker's log has the details"))

    def _fail(self, sequence: Sequence, error: TiermeshError) -> None:
        self._emit(sequence, [Failed(error)])

    def _emit(self, sequence: Sequence, outputs: list[Output]) -> None:
        """Queues outputs for their owner; the one that ends the sequence also frees it."""
        entry = self._entries[sequence.id]
        self._outputs += [(entry.sink, output) for output in outputs]
        if outputs and isinstance(outputs[-1], Ended | Scored | Failed):
            del self._entries[sequence.id]
            self._scheduler.remove(sequence)
            if (started := entry.progress.stages.started) is not None:
                self._meter.ended(self._clock.now() - started)

    def _publish(self) -> None:
        """Hands the outputs of the step to the event loop, and the load when it changed."""
        began = self._clock.now()
        changed = self._meter.look(self._scheduler)
        if not self._outputs and not changed:
            return
        outputs, self._outputs = self._outputs, []
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, outputs, changed)
        except RuntimeError:
            _log.warning("the event loop is closed; outputs are dropped", outputs=len(outputs))
        self._meter.spent(publish=self._clock.now() - began)

    def _deliver(self, outputs: list[tuple[Sink, Output]], changed: bool) -> None:
        """On the event loop's thread. One sink that fails must not take the others' outputs along."""
        for sink, output in outputs:
            try:
                sink(output)
            except Exception:  # noqa: BLE001 - logged
                _log.exception("sink failed")
        if changed:
            self.on_load()

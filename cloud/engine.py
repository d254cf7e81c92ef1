"""The engine: a thread that turns requests into answers, step by step.

Its loop is: take commands, plan, run, advance, publish. Other threads reach it through a queue of commands; outputs of
a whole step go back to the event loop in one call. So neither gRPC nor a slow reader ever holds up a step.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue

from ..common.clock import Clock, MonotonicClock
from ..common.errors import DeadlineExceeded, Draining, InternalError, LeaseExpired, Overloaded, TiermeshError
from ..common.telemetry import get_logger
from ..common.text import Text
from ..common.types import FinishReason
from .blocks import BlockPool
from .drafting import add_drafts
from .drafts import DraftCounts
from .outputs import Ended, Failed, Output, Scored
from .progress import Progress, Stages
from .request import Choice, Job, Sequence, State
from .runner import Runner
from .scheduler import Scheduler, Work
from .submission import Submission

_log = get_logger()

Sink = Callable[[Output], None]
"""Takes the outputs of one sequence, in order, on the event loop's thread; must not block."""

_RECENT = 0.1
"""Weight of the latest value in running means."""


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
    ngram_drafts: bool = True
    """Whether sequences that generate draft what followed the same ids before."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is, and what it has done since its start."""

    slots: int
    running: int = 0
    waiting: int = 0
    kv_free: float = 1.0
    """Share of the KV pool that is free, or held by sessions that wait for an ask."""
    step_s: float = 0.0
    """Mean duration of the recent steps."""
    answer_s: float = 1.0
    """Mean time that the recent sequences ran."""
    steps: int = 0
    choices: int = 0
    """Rows whose logits were wanted."""
    tokens: int = 0
    """Rows run, prompts and drafts included."""
    preemptions: int = 0
    drafted: int = 0
    """Ids that were drafted by looking back."""
    accepted: int = 0
    """Of these: what the model would have chosen too."""


@dataclass(slots=True)
class _Entry:
    progress: Progress
    sink: Sink


class Engine:
    """One model on one device. `start` comes first; `submit`, `ask` and `cancel` may come from any thread."""

    def __init__(self, runner: Runner, text: Text, config: EngineConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.load = EngineLoad(config.slots)
        """Replaced after each step."""
        self.on_load: Callable[[], None] = lambda: None
        """Called on the event loop's thread when the numbers of running or waiting sequences changed."""
        self.pool_tokens = runner.pool_blocks * runner.block_size
        self._runner = runner
        self._text = text
        self._clock = clock or MonotonicClock()
        self._scheduler = Scheduler(BlockPool(runner.pool_blocks, runner.block_size), config.slots, config.step_tokens)
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._entries: dict[int, _Entry] = {}
        self._outputs: list[tuple[Sink, Output]] = []
        self._foreseen: deque[tuple[float, Sequence]] = deque()
        """New sessions without an ask, and when each begins to read ahead."""
        self._drafts = DraftCounts()
        self._numbers = itertools.count(1)
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the thread; outputs are delivered on `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Ends all sequences with `Draining` and the thread; waits for the step in progress."""
        self._commands.put(self._stop)
        self._thread.join()

    def submit(self, submission: Submission, sink: Sink) -> int:
        """Queues a request and returns its number. Raises Overloaded when too many wait, Draining when it stops."""
        if self._stopping:
            raise Draining("this worker is stopping; another one may answer")
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
            self._take_commands()
            self._expire()
            self._read_ahead()
            if plan := self._plan():
                self._step(plan)
            self._publish()
        self._publish()

    def _plan(self) -> list[Work]:
        plan = self._scheduler.plan()
        if not self.config.ngram_drafts:
            return plan
        budget = max(self.config.slots, self.config.step_tokens) - sum(work.count for work in plan)
        return add_drafts(plan, budget, self._scheduler.pool, self._drafts)

    def _take_commands(self) -> None:
        """All that came; waits for one when there is nothing to run."""
        try:
            if not self._scheduler.has_work:
                self._publish()
                self._commands.get(timeout=self._patience())()
            while not self._stopping:
                self._commands.get_nowait()()
        except Empty:
            return

    def _patience(self) -> float | None:
        """Seconds until an idle session's deadline or end of lease, or until one reads ahead; None without any."""
        due = [s.deadline for s in self._scheduler.idle if s.deadline is not None]
        due += [s.last_used + self.config.session_lease_s for s in self._scheduler.idle]
        due += [begin for begin, _ in self._foreseen]
        return max(0.0, min(due) - self._clock.now()) if due else None

    def _submit(self, number: int, submission: Submission, sink: Sink, submitted: float) -> None:
        sequence = submission.sequence(number, submitted)
        text = self._text.detokenizer(submission.stop, submission.delivered_ids, submission.delivered_bytes)
        progress = Progress(sequence, partial(self._text.detokenizer, submission.stop), text, Stages(submitted))
        self._entries[number] = _Entry(progress, sink)
        if submission.job is Job.VERIFY:
            self._scheduler.park(sequence, submitted)
            self._foreseen.append((self._clock.now() + self.load.step_s, sequence))
        else:
            self._scheduler.add(sequence)
            self._emit(sequence, progress.begin(submitted))

    def _read_ahead(self) -> None:
        """Sessions whose ask has not come within the time of a step begin to read what they know.

        Reading apart from the ask costs one pass more, so it is worth waiting as long as a pass takes, and no longer
        (the rule for renting skis: at most twice the best). At once, it made a fast edge's first ask 8 ms slower.
        """
        now = self._clock.now()
        while self._foreseen and self._foreseen[0][0] <= now:
            _, sequence = self._foreseen.popleft()
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
            self._emit(sequence, [Ended(FinishReason.CANCELLED, sequence.answer_length, timings)])

    def _stop(self) -> None:
        self._stopping = True
        for sequence in self._scheduler.everyone():
            self._fail(sequence, Draining("this worker is stopping; another one may answer"))

    def _expire(self) -> None:
        now = self._clock.now()
        for sequence in self._scheduler.everyone():
            if sequence.deadline is not None and sequence.deadline <= now:
                self._fail(sequence, DeadlineExceeded("the deadline passed at the worker"))
        lease_s = self.config.session_lease_s
        for sequence in self._scheduler.unused_since(now - lease_s):
            self._fail(sequence, LeaseExpired(f"no ask came for {lease_s:g} s; open the session with all ids given"))

    def _step(self, plan: list[Work]) -> None:
        """Runs a plan and takes in what it gave. A failing pass ends the sequences in it, not the engine."""
        began = self._clock.now()
        try:
            results = self._runner.run(plan)
        except Exception:  # noqa: BLE001 - the top of a step; logged, and the engine goes on
            _log.exception("step failed", sequences=len(plan))
            for work in plan:
                self._spoil(work.sequence)
            return
        now = self._clock.now()
        for work, choices in zip(plan, results, strict=True):
            stages = self._entries[work.sequence.id].progress.stages
            stages.started = began if stages.started is None else stages.started
            stages.computing_s += now - began
            self._advance(work, choices, now)
        self._measure(plan, now - began)

    def _advance(self, work: Work, choices: list[Choice], now: float) -> None:
        sequence = work.sequence
        if not all(choice.finite for choice in choices):
            _log.error("logits are not finite", sequence=sequence.id, position=sequence.computed)
            self._spoil(sequence)
            return
        self._emit(sequence, self._entries[sequence.id].progress.advance(work, choices, now))
        if sequence.job is Job.VERIFY and not (sequence.asked or sequence.pending):
            self._scheduler.rest(sequence, now)

    def _spoil(self, sequence: Sequence) -> None:
        """Ends a sequence whose KV can't be trusted; nobody may read what it leaves behind."""
        self._runner.scrub(tuple(sequence.blocks))
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
            started = entry.progress.stages.started
            if started is not None:
                lasted = self._clock.now() - started
                self.load = replace(self.load, answer_s=_mean(self.load.answer_s, lasted))

    def _measure(self, plan: list[Work], duration_s: float) -> None:
        load = self.load
        self.load = replace(
            load,
            step_s=_mean(load.step_s or duration_s, duration_s),
            steps=load.steps + 1,
            choices=load.choices + sum(work.wanted for work in plan),
            tokens=load.tokens + sum(work.count for work in plan),
            drafted=self._drafts.drafted,
            accepted=self._drafts.accepted,
        )

    def _publish(self) -> None:
        """Hands the outputs of the step to the event loop, and the load when it changed."""
        scheduler = self._scheduler
        before = self.load
        free = scheduler.pool.free + sum(len(s.blocks) for s in scheduler.idle)
        self.load = replace(
            before,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_free=free / scheduler.pool.total,
            preemptions=scheduler.preemptions,
        )
        changed = (before.running, before.waiting) != (self.load.running, self.load.waiting)
        if not self._outputs and not changed:
            return
        outputs, self._outputs = self._outputs, []
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, outputs, changed)
        except RuntimeError:
            _log.warning("the event loop is closed; outputs are dropped", outputs=len(outputs))

    def _deliver(self, outputs: list[tuple[Sink, Output]], changed: bool) -> None:
        """On the event loop's thread. One sink that fails must not take the others' outputs along."""
        for sink, output in outputs:
            try:
                sink(output)
            except Exception:  # noqa: BLE001 - logged
                _log.exception("sink failed")
        if changed:
            self.on_load()


def _mean(mean: float, value: float) -> float:
    return mean + _RECENT * (value - mean)

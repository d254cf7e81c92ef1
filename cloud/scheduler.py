"""Who steps: sequences, a token budget and free blocks in, a plan out. No clock, no tensors, no I/O.

Sequences are ranked by tier, then by when they are due, then by arrival. The first that waits is let in as soon as it
has a slot and blocks for all tokens known so far, if need be in place of lower tiers (`preemption.py`); nobody
overtakes it.

Each step gives a running sequence what it lacks, `tokens + drafts − computed`, out of one budget: first those that
decode or verify, then those that read, in chunks (`pace.py`). While a higher tier reads, decoding lower ones pause, but
for every eighth step.

A session between two asks, and a preempted sequence, hold nothing; what they computed stays until somebody needs the
room, and under its name (`prefix.py`) for longer than that.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from .blocks import BlockPool, Lease
from .haste import ENOUGH, time_left
from .pace import Pace
from .preemption import settled, who_makes_room, who_yields
from .request import Job, Sequence, State

_PAUSE = 7
"""Steps in a row that lower tiers pause at most, while a higher one reads."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one sequence runs in a step."""

    sequence: Sequence
    count: int
    """Tokens from `computed` on."""
    epoch: int = 0
    """The sequence's, when this was planned."""

    @property
    def wanted(self) -> int:
        """How many of the last tokens of this chunk have a choice that is wanted."""
        end = self.sequence.computed + self.count
        return max(0, end - max(self.sequence.computed, self.sequence.first_wanted))

    @property
    def read(self) -> int:
        """How many are read: prompts, texts to score, and what was lost."""
        return self.count if self.sequence.job is Job.SCORE else self.count - self.wanted

    @property
    def drafted(self) -> int:
        """How many are drafts."""
        return max(0, self.sequence.computed + self.count - max(self.sequence.computed, len(self.sequence.tokens)))


class Scheduler:
    """Waiting, running and idle sequences, and their blocks."""

    def __init__(self, pool: BlockPool, slots: int, step_tokens: int) -> None:
        """At most `slots` sequences run at once; a step has at most max(`slots`, `step_tokens`) tokens."""
        self.pool = pool
        self.slots = slots
        self.pace = Pace()
        self.waiting: list[Sequence] = []
        """By rank."""
        self.running: list[Sequence] = []
        self.idle: dict[Sequence, None] = {}
        """The longest unused first."""
        self.preemptions = {"slots": 0, "kv": 0, "growth": 0}
        """By what was short: slots or KV for one that waited, KV for one that ran."""
        self.step_tokens = max(slots, step_tokens)
        self._paused = 0
        self._now = 0.0

    @property
    def has_work(self) -> bool:
        """Whether `plan` would give somebody something."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence, or one that was asked again or preempted; its rank is what it was.

        A session that has nothing to read ahead rests at once.
        """
        if not sequence.pending:
            sequence.state = State.IDLE
            self.idle.setdefault(sequence)
            return
        self.idle.pop(sequence, None)
        sequence.state = State.WAITING
        insort(self.waiting, sequence, key=_rank)

    def rest(self, sequence: Sequence, now: float) -> None:
        """RUNNING → IDLE: the session waits for an ask, and what it computed stays while nobody needs the room."""
        self.running.remove(sequence)
        sequence.lease = self.pool.lease(sequence.blocks)
        self.park(sequence, now)

    def park(self, sequence: Sequence, now: float) -> None:
        """A new session begins IDLE: its ask may be on the way."""
        sequence.state = State.IDLE
        sequence.last_used = now
        self.idle[sequence] = None

    def unused_since(self, moment: float) -> list[Sequence]:
        """Idle sessions that were opened, or had their last answer, no later than `moment`."""
        unused = []
        for sequence in self.idle:
            if sequence.last_used > moment:
                break
            unused.append(sequence)
        return unused

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence in whatever state; its blocks are free at once."""
        assert sequence.state is not State.FINISHED
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
        elif sequence.state is State.WAITING:
            del self.waiting[bisect_left(self.waiting, sequence.rank, key=_rank)]
        else:
            del self.idle[sequence]
        sequence.state = State.FINISHED
        sequence.epoch += 1
        self.pool.release(sequence.blocks)
        self.pool.end(sequence.lease)

    def everyone(self) -> Iterable[Sequence]:
        """All sequences that have not ended."""
        return [*self.running, *self.waiting, *self.idle]

    def plan(self, now: float) -> list[Work]:
        """Lets in who fits and shares the budget; blocks for all of the plan are held.

        Empty only when there is no work: if whoever ran had to give way, somebody else is let in. The time tells who
        is in haste.
        """
        self._now = now
        self._let_in()
        works = self._share()
        if not works and self.waiting:
            self._let_in()
            works = self._share()
        return works

    def current(self, work: Work) -> bool:
        """Whether a result of `work` still means something: False once its sequence was planned anew or left."""
        return work.epoch == work.sequence.epoch

    def observe(self, plan: Many[Work], seconds: float) -> None:
        """A plan took this long; called before its results are taken in."""
        read = sum(work.count for work in plan if work.read)
        self.pace.observe(sum(not work.read for work in plan), read, seconds)

    def publish(self, sequence: Sequence) -> None:
        """Names the full blocks that were computed; called once a step's values are known to be finite."""
        full = min(sequence.computed, len(sequence.tokens)) // self.pool.block_size
        if sequence.chain is None or full <= sequence.published:
            return
        names = sequence.chain.names(sequence.tokens, full)
        for i in range(sequence.published, full):
            self.pool.publish(sequence.blocks[i], names[i])
        sequence.published = full

    def _let_in(self) -> None:
        while self.waiting:
            sequence = self.waiting[0]
            self._regain(sequence)
            tokens = sequence.longest if settled(sequence) else sequence.computed + sequence.pending
            needed = self.pool.missing(len(sequence.blocks), tokens)
            victims = who_makes_room(sequence, needed, self.running, self.pool, self.slots, self._time_left)
            if victims is None:
                sequence.lease = self.pool.lease(sequence.blocks)
                return
            short = "slots" if len(self.running) >= self.slots else "kv"
            for victim in victims:
                self._preempt(victim, short)
            self.waiting.pop(0)
            sequence.state = State.RUNNING
            self.running.append(sequence)
            grown = self.pool.grow(sequence.blocks, tokens)
            assert grown
            if sequence.cached is None:
                sequence.cached = sequence.computed

    def _regain(self, sequence: Sequence) -> None:
        """Holds what is left of what it computed, and what others have computed for it; something is left to run."""
        size, pool = self.pool.block_size, self.pool
        lease, sequence.lease = sequence.lease, Lease()
        sequence.blocks = pool.regain(lease)
        pool.end(lease)
        have = len(sequence.blocks) * size
        if have <= sequence.computed:
            if sequence.chain is not None:
                findable = min(sequence.first_wanted, sequence.computed + sequence.pending - 1) // size
                names = sequence.chain.names(sequence.tokens, findable)
                sequence.blocks += pool.find(names[len(sequence.blocks) :])
            sequence.computed = len(sequence.blocks) * size
        sequence.published = sequence.computed // size

    def _share(self) -> list[Work]:
        ready = self._unpaused(self._with_blocks())
        readers, deciders = [s for s in ready if s.reading], [s for s in ready if not s.reading]
        works, budget = list[Work](), self.step_tokens
        limits = {False: budget, True: self._reading_limit(readers, deciders)}
        for sequence in (*deciders, *readers):
            count = min(sequence.pending, budget, limits[sequence.reading])
            if count:
                sequence.epoch += 1
                works.append(Work(sequence, count, sequence.epoch))
                budget -= count
                limits[sequence.reading] -= count
        return works

    def _with_blocks(self) -> list[Sequence]:
        """Who can run, by rank, each with blocks for all of its tokens; who gave way for that is not among them."""
        ranked = sorted(self.running, key=_rank)
        for sequence in ranked:
            if sequence.state is State.RUNNING:
                if sequence.job is Job.GENERATE:
                    sequence.draft.clear()
                self._make_room(sequence)
        return [s for s in ranked if s.state is State.RUNNING and s.pending]

    def _unpaused(self, ready: list[Sequence]) -> list[Sequence]:
        """Those who run in this step: who ranks below a tier that reads its prompt would only prolong it."""
        reader = next((s for s in ready if s.reading), None)
        going = [
            s
            for s in ready
            if reader is None or s.tier <= reader.tier or (not s.reading and self._time_left(s) < ENOUGH)
        ]
        if len(going) == len(ready) or self._paused == _PAUSE:
            self._paused = 0
            return ready
        self._paused += 1
        return going

    def _reading_limit(self, readers: list[Sequence], deciders: list[Sequence]) -> int:
        """Tokens for all readers together; those of lower tiers than who decodes give them no more than their share."""
        if not readers or not deciders or readers[0].tier < deciders[0].tier:
            return self.step_tokens
        equals = sum(s.tier <= deciders[0].tier for s in readers)
        return self.pace.tokens(len(deciders), equals / len(deciders))

    def _make_room(self, sequence: Sequence) -> None:
        """Blocks from those who rank behind, if none is free; from `sequence` itself where nobody does."""
        while not self.pool.grow(sequence.blocks, sequence.computed + sequence.pending):
            victim = who_yields(sequence, self.running, self.pool, self._time_left)
            self._preempt(victim, "growth")
            if victim is sequence:
                return

    def _time_left(self, sequence: Sequence) -> float:
        return time_left(sequence, self._now, self.pace.plain_s(len(self.running)))

    def _preempt(self, victim: Sequence, short: str) -> None:
        """RUNNING → WAITING."""
        self.running.remove(victim)
        victim.pause()
        victim.lease = self.pool.lease(victim.blocks)
        victim.preemptions += 1
        self.preemptions[short] += 1
        self.add(victim)


def _rank(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.rank

"""Who steps: sequences, a token budget and free blocks in, a plan out. No clock, no tensors, no I/O.

Each step gives a running sequence what it lacks, `tokens + drafts − computed`, out of one budget. Short ones go first
(decoding sequences and asks), so that nobody waits behind a long prompt; a prompt takes what is left, in chunks.

Blocks are taken as tokens come. When they run out, idle sessions lose theirs (longest unused first), then sessions that
wait with an ask (latest first), then the latest arrival among the running is preempted: it waits, keeps its place, and
computes its tokens again. The oldest is never preempted, and no sequence is longer than the pool, so something always
ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .blocks import BlockPool
from .request import Sequence, State


@dataclass(frozen=True, slots=True)
class Work:
    """What one sequence runs in a step."""

    sequence: Sequence
    count: int
    """Tokens from `computed` on."""

    @property
    def wanted(self) -> int:
        """How many of the last tokens of this chunk have a choice that is wanted."""
        end = self.sequence.computed + self.count
        return max(0, end - max(self.sequence.computed, self.sequence.first_wanted))


class Scheduler:
    """Waiting, running and idle sequences, and their blocks."""

    def __init__(self, pool: BlockPool, slots: int, step_tokens: int) -> None:
        """At most `slots` sequences run at once; a step has at most max(`slots`, `step_tokens`) tokens."""
        self.pool = pool
        self.slots = slots
        self.waiting: list[Sequence] = []
        """By arrival."""
        self.running: list[Sequence] = []
        self.idle: list[Sequence] = []
        self.preemptions = 0
        self._step_tokens = max(slots, step_tokens)

    @property
    def has_work(self) -> bool:
        """Whether `plan` would give somebody something."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence, or one that was asked again; it keeps the place of its arrival.

        A session that has nothing to read ahead rests at once.
        """
        if sequence in self.idle:
            self.idle.remove(sequence)
        if not sequence.pending:
            sequence.state = State.IDLE
            self.idle.append(sequence)
            return
        at = next((i for i, other in enumerate(self.waiting) if other.arrival > sequence.arrival), len(self.waiting))
        sequence.state = State.WAITING
        self.waiting.insert(at, sequence)

    def rest(self, sequence: Sequence, now: float) -> None:
        """RUNNING → IDLE: the session waits for an ask and keeps its KV while nobody needs the room."""
        self.running.remove(sequence)
        sequence.state = State.IDLE
        sequence.last_used = now
        self.idle.append(sequence)

    def park(self, sequence: Sequence, now: float) -> None:
        """A new session begins IDLE: its ask may be on the way."""
        sequence.state = State.IDLE
        sequence.last_used = now
        self.idle.append(sequence)

    def unused_since(self, moment: float) -> list[Sequence]:
        """Idle sessions that were opened, or had their last answer, no later than `moment`."""
        return [sequence for sequence in self.idle if sequence.last_used <= moment]

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence in whatever state; its blocks are free at once."""
        assert sequence.state is not State.FINISHED
        for members in (self.waiting, self.running, self.idle):
            if sequence in members:
                members.remove(sequence)
        sequence.state = State.FINISHED
        self.pool.release(sequence.forget())

    def everyone(self) -> Iterable[Sequence]:
        """All sequences that have not ended."""
        return [*self.running, *self.waiting, *self.idle]

    def plan(self) -> list[Work]:
        """Admits who fits and shares the budget; blocks for all of the plan are taken."""
        self._admit()
        budget, plan = self._step_tokens, list[Work]()
        for sequence in sorted(self.running, key=lambda s: (s.pending > self.pool.block_size, s.arrival)):
            if sequence.state is not State.RUNNING or budget == 0:
                continue
            count = min(sequence.pending, budget)
            if self._make_room(sequence, sequence.computed + count, plan):
                plan.append(Work(sequence, count))
                budget -= count
        return plan

    def _admit(self) -> None:
        """WAITING → RUNNING, by arrival, while slots and blocks for the tokens known so far last."""
        while self.waiting and len(self.running) < self.slots:
            sequence = self.waiting[0]
            needed = self.pool.missing(len(sequence.blocks), sequence.computed + sequence.pending)
            if needed > self.pool.free and not self._evict(needed, but=sequence):
                return
            self.waiting.pop(0)
            sequence.state = State.RUNNING
            self.running.append(sequence)

    def _make_room(self, sequence: Sequence, tokens: int, plan: list[Work]) -> bool:
        """Blocks for `tokens` tokens, from later arrivals if need be; False when `sequence` itself had to give way."""
        while not self.pool.grow(sequence.blocks, tokens):
            if self._evict(self.pool.missing(len(sequence.blocks), tokens)):
                continue
            victim = max(self.running, key=lambda s: s.arrival)
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        return True

    def _evict(self, needed: int, but: Sequence | None = None) -> bool:
        """Frees blocks of those who don't run, except `but`, until `needed` are free.

        False, and nobody loses any, when all of theirs would not do.
        """
        holders = sorted((s for s in self.idle if s.blocks), key=lambda s: s.last_used)
        holders += [s for s in reversed(self.waiting) if s.blocks and s is not but]
        if self.pool.free + sum(len(s.blocks) for s in holders) < needed:
            return False
        for sequence in holders:
            if self.pool.free >= needed:
                break
            self.pool.release(sequence.forget())
        return True

    def _preempt(self, victim: Sequence, plan: list[Work]) -> None:
        """RUNNING → WAITING; what this step had already given the victim is taken back."""
        plan[:] = [work for work in plan if work.sequence is not victim]
        self.running.remove(victim)
        self.pool.release(victim.forget())
        self.preemptions += 1
        self.add(victim)

"""Simulated workers: continuous batching, with prefill before decode and a step that grows with the batch. Pure.

Who waits for its prefill is read by tier, then by deadline. A prefill is made in chunks (`cloud/scheduler.py`): a
higher tier that comes is read first, and then the rest of what was under way. When the batch is full who is read takes
the place of a lower tier, as `cloud/preemption.py` has it: of the lowest, of those the one with the least to compute
again, none more often than it may; they know no haste (`cloud/haste.py`). What a victim computed stays, but for its
last block, while the KV pool holds all that is here. It holds `slots` whole contexts (`cloud/loading.py`).

All decoding sequences of a worker are given one token per step, so each has come as far as the worker's count of steps
since it joined; the count grows at 1 ÷ TPOT(batch) and stands still during a prefill. That makes a run an affair of few
events per request.
"""

from __future__ import annotations

import heapq
from bisect import insort
from dataclasses import dataclass, field

from ..cloud.preemption import most_preemptions

_BLOCK = 16
"""Tokens of a KV block; those of one that is not full are computed again."""


@dataclass(frozen=True, slots=True)
class Service:
    """Times of a worker, in seconds, and the sequences that it runs at once."""

    slots: int = 16
    prefill_s: float = 0.005
    prefill_token_s: float = 0.00004
    step_s: float = 0.012
    step_sequence_s: float = 0.0005
    """What each sequence of the batch adds to a step."""
    kv_tokens: int = 16 * (8192 + 1024)
    """Of the KV pool: a whole context for each slot."""

    def read_s(self, tokens: int) -> float:
        """Of a prefill."""
        return self.prefill_s + self.prefill_token_s * tokens

    def tpot_s(self, batch: int) -> float:
        """Of a step."""
        return self.step_s + self.step_sequence_s * batch

    def least_work_s(self, prompt: int, output: int) -> float:
        """Worker seconds that a request takes at least: its prefill, and its part of steps with the fullest batch."""
        return self.read_s(prompt) + (output - 1) * self.tpot_s(self.slots) / self.slots


@dataclass(slots=True, eq=False)
class Sequence:
    """An answer under way."""

    number: int
    prompt: int
    output: int
    tier: int = 0
    """0 is the highest."""
    due: float = 0.0
    """Its deadline."""
    delivered: float = 0.0
    """Tokens made at workers that it has left, and before it gave way; a part of one is lost."""
    kept: int = 0
    """Tokens whose KV is still here, where it gave way."""
    preemptions: int = 0
    joined: float | None = None
    """The worker's count of steps when it began to decode."""

    @property
    def rank(self) -> tuple[int, float, int]:
        """Who has the smallest is read first."""
        return self.tier, self.due, self.number

    @property
    def unread(self) -> int:
        """Tokens to be read before it decodes."""
        return self.prompt + int(self.delivered) - self.kept


@dataclass(slots=True)
class Worker:
    """One worker. Call `advance` before anything else at a new time."""

    service: Service
    name: str
    now: float = 0.0
    steps: float = 0.0
    reading: Sequence | None = None
    read_from: float = 0.0
    read_at: float = 0.0
    """When the prefill in progress began, and when it ends."""
    queue: list[Sequence] = field(default_factory=list)
    """To be read, by rank."""
    decoding: dict[int, Sequence] = field(default_factory=dict)
    ends: list[tuple[float, int]] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Sequences here."""
        return len(self.decoding) + len(self.queue) + (self.reading is not None)

    def advance(self, now: float) -> None:
        """Time passes; no event may lie between."""
        if self.reading is None and self.decoding:
            self.steps += (now - self.now) / self.service.tpot_s(len(self.decoding))
        self.now = now

    def add(self, sequence: Sequence) -> None:
        """A new sequence, or one that another worker has begun."""
        insort(self.queue, sequence, key=_rank)
        if self.reading is not None and sequence.tier < self.reading.tier:
            self._interrupt(self.reading)
        self._read()

    @property
    def next_event(self) -> float:
        """When the next prefill or answer ends."""
        if self.reading is not None:
            return self.read_at
        while self.ends and self.ends[0][1] not in self.decoding:
            heapq.heappop(self.ends)
        if not self.ends:
            return float("inf")
        return self.now + max(0.0, self.ends[0][0] - self.steps) * self.service.tpot_s(len(self.decoding))

    def pop(self) -> tuple[Sequence, bool]:
        """What the event at this very time is about, and whether the sequence has all its tokens."""
        if (read := self.reading) is not None:
            self.reading = None
            self.decoding[read.number] = read
            read.delivered = float(int(read.delivered)) + 1.0
            read.joined = self.steps
            left = read.output - read.delivered
            if left <= 0:
                self.leave(read)
            else:
                heapq.heappush(self.ends, (self.steps + left, read.number))
            self._read()
            return read, left <= 0
        done = self.decoding[self.ends[0][1]]
        self.leave(done)
        done.delivered = float(done.output)
        return done, True

    def leave(self, sequence: Sequence) -> None:
        """It ends, or is cut off."""
        sequence.delivered = self.made(sequence)
        sequence.joined, sequence.kept = None, 0
        if sequence is self.reading:
            self.reading = None
        elif self.decoding.pop(sequence.number, None) is None:
            self.queue.remove(sequence)
        self._read()

    def made(self, sequence: Sequence) -> float:
        """Tokens that it has so far."""
        here = 0.0 if sequence.joined is None else self.steps - sequence.joined
        return min(float(sequence.output), sequence.delivered + here)

    def die(self) -> list[Sequence]:
        """All that it held, to go on elsewhere."""
        everybody = [*self.decoding.values(), *([self.reading] if self.reading else []), *self.queue]
        for sequence in everybody:
            self.leave(sequence)
        return everybody

    def _read(self) -> None:
        if self.reading is None and self.queue and self._has_place(self.queue[0]):
            self.reading = self.queue.pop(0)
            self.read_from = self.now
            self.read_at = self.now + self.service.read_s(self.reading.unread)

    def _interrupt(self, reading: Sequence) -> None:
        """What was read stays, in whole blocks. Its place is that of who comes, for nobody joins during a prefill."""
        tokens = max(0.0, self.now - self.read_from - self.service.prefill_s) / self.service.prefill_token_s
        reading.kept += min(int(tokens), reading.unread - 1) // _BLOCK * _BLOCK
        self.reading = None
        insort(self.queue, reading, key=_rank)

    def _has_place(self, sequence: Sequence) -> bool:
        """Whether the batch has a place for it. Where it is full a lower tier gives way, if there is one."""
        if len(self.decoding) < self.service.slots:
            return True
        short = self._kv_is_short
        lower = [one for one in self.decoding.values() if one.tier > sequence.tier and self._gives_way(one, short)]
        if lower:
            self._preempt(min(lower, key=lambda one: (-one.tier, one.prompt + self.made(one))))
        return bool(lower)

    def _gives_way(self, one: Sequence, kv_is_short: bool) -> bool:
        return one.preemptions < most_preemptions(int(self.made(one)), kv_is_short=kv_is_short)

    @property
    def _kv_is_short(self) -> bool:
        here = sum(one.prompt + self.made(one) for one in (*self.decoding.values(), *self.queue))
        return here > self.service.kv_tokens

    def _preempt(self, victim: Sequence) -> None:
        kept = not self._kv_is_short
        del self.decoding[victim.number]
        self.ends = [end for end in self.ends if end[1] != victim.number]
        heapq.heapify(self.ends)
        victim.delivered, victim.joined, victim.kept = self.made(victim), None, 0
        whole = (victim.unread - 1) // _BLOCK * _BLOCK
        victim.kept = whole if kept else 0
        victim.preemptions += 1
        insort(self.queue, victim, key=_rank)


def _rank(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.rank

"""Simulated workers: continuous batching, with prefill before decode and a step that grows with the batch. Pure.

All decoding sequences of a worker are given one token per step, so each has come as far as the worker's count of steps
since it joined; the count grows at 1 ÷ TPOT(batch) and stands still during a prefill. That makes a run an affair of few
events per request.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Service:
    """Times of a worker, in seconds, and the sequences that it runs at once."""

    slots: int = 16
    prefill_s: float = 0.005
    prefill_token_s: float = 0.00004
    step_s: float = 0.012
    step_sequence_s: float = 0.0005
    """What each sequence of the batch adds to a step."""

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
    delivered: float = 0.0
    """Tokens made at workers that it has left; a part of one is lost."""
    joined: float | None = None
    """The worker's count of steps when it began to decode."""


@dataclass(slots=True)
class Worker:
    """One worker. Call `advance` before anything else at a new time."""

    service: Service
    name: str
    now: float = 0.0
    steps: float = 0.0
    reading: Sequence | None = None
    read_at: float = 0.0
    """When the prefill in progress ends."""
    queue: deque[Sequence] = field(default_factory=deque)
    """To be read, in order."""
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
        self.queue.append(sequence)
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
        sequence.joined = None
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
        if self.reading is None and self.queue and len(self.decoding) < self.service.slots:
            self.reading = self.queue.popleft()
            self.read_at = self.now + self.service.read_s(self.reading.prompt + int(self.reading.delivered))

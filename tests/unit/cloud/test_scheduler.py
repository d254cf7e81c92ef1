"""A stateful fuzzer over the scheduler: arrivals, asks, ends and steps in any order, with a fake model."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tiermesh.cloud.batch import RESERVED_BLOCKS
from tiermesh.cloud.blocks import BlockPool
from tiermesh.cloud.request import Choice, Job, Sequence, State
from tiermesh.cloud.scheduler import Scheduler
from tiermesh.common.types import Sampling

BLOCKS, SLOTS, BUDGET = 12, 3, 20


def sequence(number: int, job: Job, prompt: int, answer: int = 8) -> Sequence:
    return Sequence(number, job, prompt, list(range(prompt)), answer, Sampling(), frozenset(), arrival=number)


class SchedulerFuzz(RuleBasedStateMachine):
    """Whatever happens, blocks add up and everybody gets on."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(BlockPool(BLOCKS, 16), SLOTS, BUDGET)
        self.number = 0
        self.steps = 0.0

    def _alive(self) -> list[Sequence]:
        return list(self.scheduler.everyone())

    @rule(prompt=st.integers(1, 150), job=st.sampled_from(Job))
    def arrive(self, prompt: int, job: Job) -> None:
        self.number += 1
        self.scheduler.add(sequence(self.number, job, prompt, answer=24))

    def _askable(self) -> list[Sequence]:
        return [s for s in self._alive() if s.job is Job.VERIFY and not s.asked]

    @precondition(lambda self: self._askable())
    @rule(data=st.data(), alone=st.integers(0, 9), draft=st.integers(0, 16))
    def ask(self, data: st.DataObject, alone: int, draft: int) -> None:
        chosen = data.draw(st.sampled_from(self._askable()))
        if chosen.answer_length + alone + draft <= chosen.max_tokens:
            chosen.ask(range(alone), range(draft))
            if chosen.state is State.IDLE:
                self.scheduler.add(chosen)

    @precondition(lambda self: self._alive())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.scheduler.remove(data.draw(st.sampled_from(self._alive())))

    @rule()
    def step(self) -> None:
        self.steps += 1
        plan = self.scheduler.plan()
        assert bool(plan) == bool(self.scheduler.has_work)
        assert sum(work.count for work in plan) <= BUDGET
        assert len({id(work.sequence) for work in plan}) == len(plan) <= SLOTS
        for work in plan:
            assert work.sequence.state is State.RUNNING
            assert 0 < work.count <= work.sequence.pending
            assert len(work.sequence.blocks) * 16 >= work.sequence.computed + work.count
            assert 0 <= work.wanted <= work.count
        for work in plan:
            work.sequence.choices += [Choice(1)] * work.wanted
            work.sequence.computed += work.count
            if not work.sequence.pending:
                self._complete(work.sequence)

    def _complete(self, done: Sequence) -> None:
        """As the engine does: a generating sequence grows by one, a session rests with part of its draft."""
        wanted = len(done.choices)
        if done.job is Job.SCORE:
            assert wanted == done.total
            self.scheduler.remove(done)
        elif done.job is Job.GENERATE:
            assert wanted == 1
            done.tokens.append(1)
            done.choices.clear()
            if done.answer_length >= done.max_tokens:
                self.scheduler.remove(done)
        elif not done.asked:
            assert wanted == 0, "who reads ahead wants no choices"
            self.scheduler.rest(done, self.steps)
        else:
            assert wanted == len(done.draft) + 1
            kept = random.Random(self.steps).randint(done.alone, len(done.draft))
            done.tokens += [*done.draft[:kept], 1]
            done.draft.clear()
            done.asked = False
            done.choices.clear()
            done.computed = len(done.tokens) - 1
            self.scheduler.rest(done, self.steps)

    @invariant()
    def blocks_add_up(self) -> None:
        held = [block for s in self._alive() for block in s.blocks]
        assert len(held) == len(set(held)), "two sequences share a block"
        assert len(held) + self.scheduler.pool.free == BLOCKS
        assert all(RESERVED_BLOCKS <= block < RESERVED_BLOCKS + BLOCKS for block in held)

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        places = {
            State.WAITING: self.scheduler.waiting,
            State.RUNNING: self.scheduler.running,
            State.IDLE: self.scheduler.idle,
        }
        for state, members in places.items():
            assert all(s.state is state for s in members)
        assert len({id(s) for s in self._alive()}) == len(self._alive())
        arrivals = [s.arrival for s in self.scheduler.waiting]
        assert arrivals == sorted(arrivals)
        assert len(self.scheduler.running) <= SLOTS

    def teardown(self) -> None:
        """Left alone, everything that has work comes to an end: no deadlock, no livelock."""
        for _ in range(3000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work
        for rest in self._alive():
            self.scheduler.remove(rest)
        assert self.scheduler.pool.free == BLOCKS


SchedulerFuzz.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSchedulerFuzz = SchedulerFuzz.TestCase


def test_decodes_and_asks_go_before_a_long_prompt() -> None:
    scheduler = Scheduler(BlockPool(100, 16), 4, 20)
    long, short = sequence(1, Job.GENERATE, 500), sequence(2, Job.GENERATE, 6)
    scheduler.add(long)
    scheduler.add(short)
    assert [(w.sequence.id, w.count) for w in scheduler.plan()] == [(2, 6), (1, 14)]


def test_the_oldest_is_never_preempted_and_victims_keep_their_place() -> None:
    scheduler = Scheduler(BlockPool(4, 16), 4, 64)
    members = [sequence(i, Job.GENERATE, 16, 40) for i in (1, 2, 3)]
    for member in members:
        scheduler.add(member)
    for work in scheduler.plan():
        work.sequence.computed += work.count
        work.sequence.tokens.append(1)
    # Each now needs a second block, and one is free.
    plan = scheduler.plan()
    assert [work.sequence.id for work in plan] == [1, 2]
    assert members[2].state is State.WAITING
    assert members[2].computed == 0
    assert scheduler.preemptions == 1
    scheduler.add(sequence(4, Job.GENERATE, 16))
    assert [s.id for s in scheduler.waiting] == [3, 4]


def test_idle_sessions_lose_their_kv_before_anybody_is_preempted() -> None:
    scheduler = Scheduler(BlockPool(4, 16), 4, 64)
    sessions = [sequence(i, Job.VERIFY, 16) for i in (1, 2)]
    for now, session in enumerate(sessions):
        scheduler.add(session)
        (work,) = scheduler.plan()
        session.computed += work.count
        scheduler.rest(session, float(now))
    scheduler.add(sequence(3, Job.GENERATE, 40))
    assert len(scheduler.plan()) == 1
    assert [len(s.blocks) for s in sessions] == [0, 1]
    assert scheduler.preemptions == 0


def test_a_session_reads_all_but_the_last_token_ahead_and_an_ask_joins_midway() -> None:
    scheduler = Scheduler(BlockPool(16, 16), 4, 10)
    session = sequence(1, Job.VERIFY, 24)
    scheduler.add(session)
    (work,) = scheduler.plan()
    assert (work.count, work.wanted) == (10, 0)
    session.computed += work.count
    session.ask((), (7, 8))
    counts = []
    while session.pending:
        (work,) = scheduler.plan()
        counts.append((work.count, work.wanted))
        session.computed += work.count
    assert counts == [(10, 0), (6, 3)]
    unasked, single = sequence(2, Job.VERIFY, 24), sequence(3, Job.VERIFY, 1)
    unasked.computed = 23
    assert not unasked.pending
    scheduler.add(single)
    assert single.state is State.IDLE

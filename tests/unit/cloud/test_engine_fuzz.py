"""A stateful fuzzer over the engine: whatever happens in whatever order, everybody gets the answer of a run alone.

The model is a fake whose KV is real: each position stores a hash of what lies before it, as read through the block
table, and a choice depends on all that was stored. So a block that is lost, shared or stale shows in the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tiermesh.cloud.batch import RESERVED_BLOCKS
from tiermesh.cloud.blocks import BlockPool, Lease
from tiermesh.cloud.engine import Engine, EngineConfig
from tiermesh.cloud.outputs import Ended, Failed, Output, Produced, Scored, Verified
from tiermesh.cloud.preemption import MOST, most_preemptions
from tiermesh.cloud.prefix import Salts
from tiermesh.cloud.request import Choice, Job, Sequence, State
from tiermesh.cloud.runner import Outcome
from tiermesh.cloud.scheduler import Scheduler, Work
from tiermesh.cloud.submission import Submission
from tiermesh.common.config import TierConfig
from tiermesh.common.detokenize import Detokenizer
from tiermesh.common.errors import DeadlineExceeded, InternalError, LeaseExpired
from tiermesh.common.types import FinishReason, Sampling

SIZE, BLOCKS, SLOTS, BUDGET = 4, 16, 3, 10
CONTEXT = SIZE * BLOCKS - 1
POISON, VOCABULARY = 5, 5
"""Ids below VOCABULARY are chosen; what follows POISON is not finite."""
EOS = 0
TIERS = tuple(TierConfig(name, 1.0, deadline_s, 0.0) for name, deadline_s in (("high", 5), ("usual", 30), ("low", 600)))
LEASE_S = 20.0


def after(before: int | None, token: int) -> int | None:
    """What a position stores; None is not finite."""
    return None if before is None or token == POISON else hash((before, token))


def chosen(states: Iterable[int | None]) -> int:
    number = hash(tuple(states)) // 7
    return EOS if number % 29 == 0 else 1 + number % (VOCABULARY - 1)


@lru_cache(100_000)
def states_of(ids: tuple[int, ...]) -> tuple[int | None, ...]:
    if not ids:
        return ()
    before = states_of(ids[:-1])
    return (*before, after(before[-1] if before else 1, ids[-1]))


def choice_after(ids: tuple[int, ...]) -> int:
    """What a run alone chooses behind `ids`."""
    return chosen(states_of(ids))


def answer_to(prompt: tuple[int, ...], most: int) -> list[int]:
    """What a run alone answers; without the id that ends it."""
    ids: list[int] = []
    while len(ids) < most and (following := choice_after((*prompt, *ids))) != EOS:
        ids.append(following)
    return ids


class FakeRunner:
    """Keeps a number per position, and whose it is."""

    vocab_size, max_context, pool_blocks, block_size = VOCABULARY + 1, CONTEXT, BLOCKS, SIZE

    def __init__(self) -> None:
        self.pool: BlockPool
        self.owner_of: Callable[[Sequence], str]
        slots = (RESERVED_BLOCKS + BLOCKS) * SIZE
        self.states: list[int | None] = [0] * slots
        self.owners = [""] * slots

    def run(self, plan: list[Work]) -> Outcome:
        for work in plan:
            self._write(work)
        choices, finite = [], []
        for work in plan:
            end = work.sequence.computed + work.count
            # What lies behind the last position in its block is read too, and masked: 0 · NaN is NaN.
            whole = [self.states[at] for at in self._places(work.sequence, -(-end // SIZE) * SIZE)]
            choices.append([Choice(chosen(whole[:at])) for at in range(end - work.wanted + 1, end + 1)])
            finite.append(None not in whole)
        return Outcome(choices, finite)

    def scrub(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.states[block * SIZE : (block + 1) * SIZE] = [0] * SIZE

    def _places(self, sequence: Sequence, end: int) -> list[int]:
        return [sequence.blocks[at // SIZE] * SIZE + at % SIZE for at in range(end)]

    def _write(self, work: Work) -> None:
        sequence, start, end = work.sequence, work.sequence.computed, work.sequence.computed + work.count
        places, owner = self._places(sequence, end), self.owner_of(sequence)
        assert all(self.owners[at] == owner for at in places[:start]), "reads what another tenant computed"
        before = self.states[places[start - 1]] if start else 1
        for token, at in zip(sequence.slice(start, end), places[start:], strict=True):
            assert self.pool._holders[at // SIZE] == 1, "writes to a block that others hold"
            before = self.states[at] = after(before, token)
            self.owners[at] = owner


class FakeText:
    """Ids are letters."""

    def detokenizer(self, stop: Any = (), ids: Any = (), shown: int | None = None) -> Detokenizer:
        return Detokenizer([b"", b"a", b"b", b"c", b"d", b"!"], stop, ids, shown)


class Directly:
    """Stands in for the event loop."""

    def call_soon_threadsafe(self, callback: Callable[..., None], *arguments: Any) -> None:
        callback(*arguments)


class HandClock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


class Asker:
    """One request: what it was told so far, held against what a run alone would have said."""

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.number = 0
        self.ids = list(submission.delivered_ids)
        self.asked: tuple[list[int], list[int], bool] | None = None
        self.handed_over = submission.job is Job.GENERATE
        self.may_end_by: set[type] = {Ended, Scored}
        if POISON in submission.prompt:
            self.may_end_by = {InternalError}
        self.ending: Output | None = None

    @property
    def known(self) -> tuple[int, ...]:
        return (*self.submission.prompt, *self.ids)

    def take(self, output: Output) -> None:
        assert self.ending is None, "something came after the end"
        match output:
            case Produced(position, ids):
                assert position == len(self.ids)
                for token in ids:
                    assert token == choice_after(self.known)
                    self.ids.append(token)
            case Verified():
                self._verdict(output)
            case Scored(_, choices):
                prompt, start = self.submission.prompt, self.submission.answer_start
                assert choices == tuple(choice_after(prompt[:at]) for at in range(start, len(prompt)))
                self.ending = output
            case Failed(error):
                assert type(error) in self.may_end_by, error
                self.ending = output
            case Ended(reason, length):
                self.ending = output
                if reason is FinishReason.CANCELLED:
                    assert FinishReason in self.may_end_by
                else:
                    shown = len(self.ids) - (self.ids[-1:] == [EOS])
                    assert length == min(shown, self.submission.max_tokens)
                    assert self.handed_over
                    if reason is FinishReason.LENGTH:
                        assert length == self.submission.max_tokens
                    elif not self.submission.stop:
                        assert EOS in (choice_after(self.known), *self.ids[-1:])

    def _verdict(self, verdict: Verified) -> None:
        assert self.asked is not None
        alone, draft, self.handed_over = self.asked
        self.asked = None
        for token, label in zip(alone, verdict.choices, strict=True):
            assert label == choice_after(self.known)
            self.ids.append(token)
        assert verdict.position == len(self.ids)
        for place, token in enumerate(draft):
            right = choice_after(self.known)
            if token != right:
                assert (verdict.stands, verdict.next_id) == (place, right)
                self.ids.append(right)
                break
            self.ids.append(token)
            if token == EOS:
                assert (verdict.stands, verdict.next_id) == (place + 1, None)
                break
        else:
            right = choice_after(self.known)
            assert (verdict.stands, verdict.next_id) == (len(draft), right)
            self.ids.append(right)


class EngineFuzz(RuleBasedStateMachine):
    """The engine without its thread: each rule is a command, the passing of time, or a step."""

    steps = 0
    seen: ClassVar[Counter[str]] = Counter()
    """Both of all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.runner = HandClock(), FakeRunner()
        config = EngineConfig(SLOTS, BUDGET, session_lease_s=LEASE_S, tiers=TIERS)
        self.engine = Engine(self.runner, FakeText(), config, self.clock)  # type: ignore[arg-type]
        self.engine._loop = Directly()  # type: ignore[assignment]
        self.scheduler = self.engine._scheduler
        self.pool = self.runner.pool = self.scheduler.pool
        self.askers: dict[int, Asker] = {}
        self.runner.owner_of = lambda sequence: self.askers[sequence.id].submission.tenant
        self.late: tuple[list[Work], Outcome, float] | None = None
        self._watch_preemptions()

    def _watch_preemptions(self) -> None:
        preempt = self.scheduler._preempt

        def watched(victim: Sequence, short: str) -> None:
            if short != "growth":
                assert victim.tier > self.scheduler.waiting[0].tier, "gave way to an equal"
            preempt(victim, short)

        self.scheduler._preempt = watched  # type: ignore[method-assign]

    def _alive(self) -> list[Asker]:
        return [asker for asker in self.askers.values() if asker.ending is None]

    @rule(
        job=st.sampled_from([Job.GENERATE, Job.GENERATE, Job.VERIFY, Job.SCORE]),
        kind=st.integers(0, 1),
        length=st.integers(1, 30),
        tail=st.lists(st.integers(1, POISON - 1), max_size=3),
        poison=st.integers(0, 24),
        most=st.integers(1, 26),
        tiers=st.lists(st.sampled_from([tier.name for tier in TIERS]), min_size=1, max_size=3),
        tenant=st.sampled_from("xy"),
        stop=st.sampled_from([(), (), ("ab", "cc")]),
    )
    def arrive(
        self,
        job: Job,
        kind: int,
        length: int,
        tail: list[int],
        poison: int,
        most: int,
        tiers: list[str],
        tenant: str,
        stop: tuple[str, ...],
    ) -> None:
        """Prompts of one kind begin alike, so that they find each other's blocks."""
        prompt = tuple(1 + (at * (kind + 3) // 2) % 4 for at in range(length)) + tuple(tail)
        if poison < len(prompt) and poison % 6 == 5:
            prompt = (*prompt[:poison], POISON, *prompt[poison + 1 :])
        start = max(1, len(prompt) // 2)
        stop_ids = frozenset([EOS])
        for tier in tiers:
            wish = Submission(
                job, prompt, most, Sampling(), stop, stop_ids, answer_start=start, tier=tier, tenant=tenant
            )
            self._submit(wish)

    def _submit(self, wish: Submission) -> None:
        asker = Asker(wish)
        asker.number = self.engine.submit(wish, asker.take)
        self.askers[asker.number] = asker

    def _askable(self) -> list[Asker]:
        return [a for a in self._alive() if a.submission.job is Job.VERIFY and not (a.asked or a.handed_over)]

    @precondition(lambda self: self._askable())
    @rule(data=st.data(), alone=st.integers(0, 3), size=st.integers(0, 10), wrong=st.integers(0, 9), over=st.booleans())
    def ask(self, data: st.DataObject, alone: int, size: int, wrong: int, over: bool) -> None:
        reading = {s.id for s in self.scheduler.running if s.reading}
        askable = [a for a in self._askable() if a.number in reading] or self._askable()
        asker = data.draw(st.sampled_from(askable))
        room = asker.submission.max_tokens + 1 - len(asker.ids)
        if room <= 0 or EOS in asker.ids:
            return
        unit = answer_to(asker.known, min(alone + size, room))
        draft = unit[alone:] + [EOS] * (len(unit) < min(alone + size, room) and len(unit) >= alone)
        draft = [token % 4 + 1 if place == wrong else token for place, token in enumerate(draft)]
        asker.asked = unit[:alone], draft, over
        self.engine.ask(asker.number, unit[:alone], draft, over)

    @precondition(lambda self: self._alive())
    @rule(data=st.data(), really=st.integers(0, 3))
    def cancel(self, data: st.DataObject, really: int) -> None:
        if really:
            return
        asker = data.draw(st.sampled_from(self._alive()))
        asker.may_end_by |= {FinishReason}
        self.engine.cancel(asker.number)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 3.0, LEASE_S]), deadline=st.sampled_from([None, 1.0, 9.0]))
    def time_passes(self, seconds: float, deadline: float | None) -> None:
        """Leases end; one with a deadline arrives first."""
        if deadline is not None:
            self._submit(
                Submission(Job.GENERATE, (1, 2), 14, stop_ids=frozenset([EOS]), deadline_s=deadline, tenant="x")
            )
            self.askers[max(self.askers)].may_end_by |= {DeadlineExceeded}
        self.engine._take_commands()
        self.clock.time_s += seconds
        for asker in self._alive():
            if asker.submission.job is Job.VERIFY:
                asker.may_end_by |= {LeaseExpired}

    @rule(turns=st.integers(1, 9))
    def step(self, turns: int) -> None:
        for _ in range(turns):
            EngineFuzz.steps += 1
            self.clock.time_s += 0.01
            self.engine._turn()

    @precondition(lambda self: self.late is None)
    @rule()
    def run_and_be_late(self) -> None:
        """A pass whose results come when other things have happened meanwhile."""
        EngineFuzz.steps += 1
        self.engine._take_commands()
        if plan := self.engine._plan():
            self.late = plan, self.runner.run(plan), self.clock.now()

    @precondition(lambda self: self.late is not None)
    @rule(turns=st.integers(0, 2))
    def come_late(self, turns: int) -> None:
        self.step(turns)
        late, self.late = self.late, None
        assert late is not None
        self.engine._take_commands()
        self.seen["late results"] += sum(not self.scheduler.current(work) for work in late[0])
        self.engine._take_in(*late)
        self.engine._publish()

    @invariant()
    def blocks_add_up(self) -> None:
        pool = self.pool
        held = Counter(block for s in self.scheduler.running for block in s.blocks)
        assert list(pool._holders) == [held[block] for block in range(len(pool._holders))]
        free = [*pool._empty, *pool._kept, *pool._leased]
        assert len(free) == len(set(free)) == pool.free
        assert sorted([*free, *held]) == list(range(RESERVED_BLOCKS, RESERVED_BLOCKS + BLOCKS))
        assert all(s.blocks == [] for s in (*self.scheduler.waiting, *self.scheduler.idle))

    @invariant()
    def names_are_true(self) -> None:
        pool, states = self.pool, self.runner.states
        assert {name: block for block, name in pool._names.items()} == pool._blocks
        assert not set(pool._names) & set(pool._empty)
        assert set(pool._kept) <= set(pool._names)
        for block in pool._names:
            assert None not in states[block * SIZE : (block + 1) * SIZE], "what is not finite can be found"

    @invariant()
    def nobody_writes_to_what_is_shared(self) -> None:
        for sequence in self.scheduler.running:
            assert all(self.pool._holders[block] == 1 for block in sequence.blocks[sequence.computed // SIZE :])
            assert all(block not in self.pool._names for block in sequence.blocks[sequence.computed // SIZE :])

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        scheduler = self.scheduler
        places = ((State.WAITING, scheduler.waiting), (State.RUNNING, scheduler.running), (State.IDLE, scheduler.idle))
        for state, members in places:
            assert all(s.state is state for s in members)
        everyone = list(scheduler.everyone())
        assert {s.id for s in everyone} == set(self.engine._entries)
        assert len(everyone) == len(self.engine._entries)
        assert scheduler.waiting == sorted(scheduler.waiting, key=lambda s: s.rank)
        assert len(scheduler.running) <= SLOTS
        assert all(s.preemptions <= most_preemptions(s.answer_length) for s in everyone)

    def teardown(self) -> None:
        """Left alone, everything comes to an end, and nothing is left behind: no deadlock, no livelock, no leak."""
        if self.late is not None:
            self.come_late(0)
        for _ in range(600):
            self.engine._turn()
            if not self.scheduler.has_work:
                break
        assert not self.scheduler.has_work
        for asker in self._alive():
            assert asker.submission.job is Job.VERIFY
            assert asker.asked is None, "an ask without a verdict"
            asker.may_end_by |= {FinishReason}
            self.engine.cancel(asker.number)
        self.engine._turn()
        assert all(asker.ending is not None for asker in self.askers.values()), "somebody waits for ever"
        assert self.pool.free == BLOCKS
        assert not self.pool._leased
        load = self.engine.load
        self.seen.update(load.preemptions)
        self.seen.update({"cached": load.prompts["cached"], "drafted": load.drafted, "accepted": load.accepted})
        self.seen.update(type(a.ending.error).__name__ for a in self.askers.values() if isinstance(a.ending, Failed))


def raise_again(*_: Any, **__: Any) -> None:
    raise


@pytest.fixture(autouse=True)
def no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine would log and survive, a fault of a step or of a sink, is what is looked for here."""
    quiet = SimpleNamespace(error=lambda *_, **__: None, exception=raise_again)
    monkeypatch.setattr("tiermesh.cloud.engine._log", quiet)


CI = settings(
    max_examples=400, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.mark.slow
def test_whatever_happens_everybody_gets_the_answer_of_a_run_alone() -> None:
    EngineFuzz.steps = 0
    EngineFuzz.seen.clear()
    run_state_machine_as_test(EngineFuzz, settings=CI)
    assert EngineFuzz.steps >= 20_000
    events = ("slots", "kv", "growth", "late results", "cached", "drafted", "accepted")
    ends = ("InternalError", "DeadlineExceeded", "LeaseExpired")
    assert all(EngineFuzz.seen[event] > 20 for event in (*events, *ends)), EngineFuzz.seen


def released_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end after an end: finish and abort both give the blocks back."""
    remove = Scheduler.remove

    def twice(self: Scheduler, sequence: Sequence) -> None:
        blocks = list(sequence.blocks)
        remove(self, sequence)
        self.pool.release(blocks)

    monkeypatch.setattr(Scheduler, "remove", twice)


def half_blocks_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block can be found before its KV is all there."""

    def eager(self: Scheduler, sequence: Sequence) -> None:
        full = len(sequence.tokens) // SIZE
        if sequence.chain is not None and len(sequence.blocks) >= full > sequence.published:
            for block, name in zip(sequence.blocks, sequence.chain.names(sequence.tokens, full), strict=False):
                self.pool.publish(block, name)
            sequence.published = full

    monkeypatch.setattr(Scheduler, "publish", eager)


def choices_outlive_a_preemption(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was chosen of a draft before stays, and is counted again."""

    def forgetful(self: Sequence) -> None:
        self.epoch += 1
        self.computed = min(self.computed, self.first_wanted)

    monkeypatch.setattr(Sequence, "pause", forgetful)


def late_results_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result counts whatever became of its sequence since."""
    monkeypatch.setattr(Scheduler, "current", lambda self, work: work.sequence.state is State.RUNNING)


def victims_stay_in_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gave way is run all the same, on blocks that are another's."""
    with_blocks = Scheduler._with_blocks

    def all_of_them(self: Scheduler) -> list[Sequence]:
        ready = [s for s in self.running if s.pending]
        with_blocks(self)
        return ready

    monkeypatch.setattr(Scheduler, "_with_blocks", all_of_them)


def lost_blocks_regained(monkeypatch: pytest.MonkeyPatch) -> None:
    """`computed` is not undone when somebody else was given the blocks."""
    regain = BlockPool.regain

    def trusting(self: BlockPool, lease: Lease) -> list[int]:
        free = [block for block in lease.blocks if self._holders[block] == 0 and block not in self._empty]
        return regain(self, Lease(tuple(free), tuple(self._emptied[block] for block in free)))

    monkeypatch.setattr(BlockPool, "regain", trusting)


def tenants_share_a_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tenant's prompts find another's blocks."""
    monkeypatch.setattr(Salts, "of", lambda self, tenant: bytes(32))


def spoilt_blocks_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not finite stays in the pool for its next owner."""
    monkeypatch.setattr(FakeRunner, "scrub", lambda self, blocks: None)


def equals_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting request takes the place of one of its own tier."""

    def ruthless(
        waiting: Sequence, needed: int, running: list[Sequence], pool: BlockPool, slots: int, _: object
    ) -> Any:
        if len(running) < slots and needed + len(running) <= pool.free:
            return []
        victims = [s for s in running if s.preemptions < MOST]
        return victims if len(victims) == len(running) else None

    monkeypatch.setattr("tiermesh.cloud.scheduler.who_makes_room", ruthless)


PLANTED = [
    released_twice,
    half_blocks_published,
    choices_outlive_a_preemption,
    late_results_taken,
    victims_stay_in_the_step,
    lost_blocks_regained,
    tenants_share_a_salt,
    spoilt_blocks_left_as_they_are,
    equals_give_way,
]
"""Each was shipped by somebody, somewhere."""


@pytest.mark.parametrize("bug", PLANTED)
def test_the_fuzzer_finds_what_is_planted(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: Any) -> None:
    bug(monkeypatch)
    once = settings(CI, phases=[Phase.generate], report_multiple_bugs=False, database=None)
    with pytest.raises((AssertionError, IndexError, ValueError, KeyError)):
        run_state_machine_as_test(EngineFuzz, settings=once)

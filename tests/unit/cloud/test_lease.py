"""The life of a session at the worker: it may be forgotten between two asks, and nothing of the answer changes."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.cloud.engine import Engine, EngineConfig
from tiermesh.cloud.outputs import Ended, Failed, Output, Produced, Verified
from tiermesh.cloud.request import Job
from tiermesh.cloud.runner import ModelRunner, Placement
from tiermesh.cloud.submission import Submission
from tiermesh.common.errors import LeaseExpired
from tiermesh.common.text import Text
from tiermesh.common.types import Sampling
from tiermesh.training.random_model import write_random_model

CPU = Placement(torch.device("cpu"), torch.float32)
WARM = Sampling(temperature=0.8, seed=11)
PROMPT = (0, 5, 6, 7, 8, 9, 10, 11)
LEASE_S = 30.0


class HandClock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


class Directly:
    """Stands in for the event loop: outputs are delivered on the engine's own thread."""

    def call_soon_threadsafe(self, callback: Callable[..., None], *arguments: Any) -> None:
        callback(*arguments)


class Reader:
    """Reads the outputs of one sequence."""

    def __init__(self, engine: Engine, **wish: Any) -> None:
        self._outputs: queue.Queue[Output] = queue.Queue()
        told = {"job": Job.VERIFY, "max_tokens": 24, "sampling": WARM} | wish
        self.number = engine.submit(Submission(prompt=PROMPT, **told), self._outputs.put)

    def next(self) -> Output:
        return self._outputs.get(timeout=8)

    def nothing_more(self) -> bool:
        return self._outputs.empty()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def asleep(directory: Path, clock: HandClock) -> Iterator[Engine]:
    """An engine that takes nothing before its `start`."""
    config = EngineConfig(slots=8, step_tokens=256, session_lease_s=LEASE_S)
    engine = Engine(ModelRunner.load(directory, CPU, 1024), Text(directory), config, clock)
    yield engine
    if engine._thread.is_alive():
        engine.stop()


@pytest.fixture(scope="module")
def engine(directory: Path, clock: HandClock) -> Iterator[Engine]:
    config = EngineConfig(slots=8, step_tokens=64, session_lease_s=LEASE_S)
    engine = Engine(ModelRunner.load(directory, CPU, 1024), Text(directory), config, clock)
    engine.start(Directly())  # type: ignore[arg-type]
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def target(engine: Engine) -> list[int]:
    """The answer that the model gives alone."""
    reader, ids = Reader(engine, job=Job.GENERATE), []
    while isinstance(output := reader.next(), Produced):
        ids += output.ids
    return ids


def passes(clock: HandClock, engine: Engine, seconds: float) -> None:
    """Time goes on, and the engine, which waits on the real one, looks at it."""
    clock.time_s += seconds
    engine.cancel(0)


def lease_lost(reader: Reader) -> bool:
    output = reader.next()
    return isinstance(output, Failed) and isinstance(output.error, LeaseExpired) and reader.nothing_more()


def holds_nothing(engine: Engine) -> bool:
    """After an answer that was asked for later than all else, so that the engine has done what was due."""
    reader = Reader(engine, job=Job.GENERATE, max_tokens=1)
    while not isinstance(reader.next(), Ended):
        pass
    scheduler = engine._scheduler
    return not (list(scheduler.everyone()) or engine._entries or engine._foreseen) and (
        scheduler.pool.free == scheduler.pool.total
    )


def test_a_lease_lasts_from_answer_to_answer(engine: Engine, clock: HandClock, target: list[int]) -> None:
    session = Reader(engine)
    for place in range(0, 9, 3):
        passes(clock, engine, LEASE_S - 1)
        engine.ask(session.number, (), target[place : place + 2], False)
        verdict = session.next()
        assert isinstance(verdict, Verified), "asked within its lease"
        assert (verdict.stands, verdict.next_id) == (2, target[place + 2])
    passes(clock, engine, LEASE_S)
    assert lease_lost(session)
    assert holds_nothing(engine)
    engine.ask(session.number, (), target[9:11], False)
    assert holds_nothing(engine), "nobody hears an ask of a session that is gone"


@settings(max_examples=12)
@given(gaps=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=2, max_size=6), sampled=st.booleans())
def test_whatever_leases_are_lost_the_answer_is_the_same(
    engine: Engine, clock: HandClock, target: list[int], gaps: list[tuple[int, bool]], sampled: bool
) -> None:
    """Opened anew with the ids delivered so far, a session goes on by reading them again."""
    wish = {} if sampled else {"sampling": Sampling()}
    if not sampled:
        reader, target = Reader(engine, job=Job.GENERATE, **wish), []
        while isinstance(output := reader.next(), Produced):
            target += output.ids
    session, have = Reader(engine, **wish), list[int]()
    for size, lost in gaps:
        if lost:
            passes(clock, engine, LEASE_S + 1)
            assert lease_lost(session)
            session = Reader(engine, delivered_ids=tuple(have), **wish)
        draft = target[len(have) : len(have) + size]
        engine.ask(session.number, (), draft, False)
        verdict = session.next()
        assert isinstance(verdict, Verified)
        assert (verdict.position, verdict.stands) == (len(have), len(draft))
        have += draft
        if verdict.next_id is None or len(have) >= len(target):
            break
        have.append(verdict.next_id)
    assert have[: len(target)] == target[: len(have)]
    passes(clock, engine, LEASE_S)
    assert lease_lost(session)
    assert holds_nothing(engine)


def test_edges_that_vanish_leave_nothing_behind(engine: Engine, clock: HandClock, target: list[int]) -> None:
    """Sessions without a deadline, more than the pool holds; some were asked, none is closed."""
    sessions = [Reader(engine, deadline_s=None) for _ in range(120)]
    for session in sessions[::3]:
        engine.ask(session.number, (), target[:2], False)
    for session in sessions[::3]:
        assert isinstance(session.next(), Verified)
    passes(clock, engine, LEASE_S + 1)
    assert all(lease_lost(session) for session in sessions)
    assert holds_nothing(engine)


def test_asks_of_many_edges_share_a_pass_with_everything_else(asleep: Engine, target: list[int]) -> None:
    sessions = [Reader(asleep) for _ in range(6)]
    others = [Reader(asleep, job=Job.GENERATE, max_tokens=1) for _ in range(2)]
    for session in sessions:
        asleep.ask(session.number, (), target[:4], False)
    asleep.start(Directly())  # type: ignore[arg-type]
    for session in sessions:
        verdict = session.next()
        assert isinstance(verdict, Verified)
        assert verdict.stands == 4
    assert all(isinstance(other.next(), Produced) for other in others)
    assert all(isinstance(other.next(), Ended) for other in others)
    asleep.stop()
    assert asleep.load.steps == 1

"""The choice between asking and streaming, over answers that go as two kinds of prompt do: easy ones and hard ones."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.edge.chooser import (
    Course,
    Pace,
    asking_s_per_token,
    prefers_streaming,
    worthwhile_drafts,
)

EDGE_S, VERIFY_S, STEP_S, FIRST_S, HOP_S = 0.3e-3, 9e-3, 5.2e-3, 12e-3, 3e-3
"""Seconds of a starter pair on one slow machine; the link comes on top."""


@dataclass(frozen=True)
class Kind:
    """A kind of prompt."""

    tokens: int
    agreement: float
    """Share of the edge's tokens that are the cloud's."""
    sure: float
    """The edge's own probability of its tokens."""


EASY, HARD = Kind(14, 0.985, 0.99), Kind(48, 0.77, 0.8)


def streamed_s(kind: Kind, rtt_s: float) -> float:
    return HOP_S + rtt_s + FIRST_S + (kind.tokens - 1) * STEP_S


def answered_s(kind: Kind, rtt_s: float, pace: Pace, rng: random.Random, always_ask: bool = False) -> float:
    """How long one `exact` answer takes; the loop of `Session` with made-up verdicts, in virtual time."""
    course, position, spent_s = Course(pace, may_be_alone=False), 0, HOP_S
    while position < kind.tokens:
        drafted = min(worthwhile_drafts(course), kind.tokens - position)
        agrees = [rng.random() < kind.agreement for _ in range(drafted)]
        stands = agrees.index(False) if False in agrees else drafted
        pace.edge_step_s.add(EDGE_S)
        course.decided([kind.sure] * drafted, alone=False)
        hands_over = not always_ask and (pace.probe_due() or prefers_streaming(course, None))
        first = position == 0
        pace.travelled(HOP_S + rtt_s + (FIRST_S if first else 0.0), first)
        if not first:
            pace.verify_s.add(VERIFY_S)
        course.visited(drafted, stands)
        spent_s += drafted * EDGE_S + HOP_S + rtt_s + (FIRST_S if first else VERIFY_S)
        position += stands + 1
        if hands_over and position < kind.tokens:
            spent_s += (kind.tokens - position) * STEP_S
            if kind.tokens - position > 4:
                pace.streamed(STEP_S)
            return spent_s
    return spent_s


@pytest.mark.parametrize("rtt_ms", [0, 1, 3, 5, 7, 10, 20, 50, 100])
@pytest.mark.parametrize("hard_share", [0.2, 0.5])
def test_either_kind_takes_at_most_a_tenth_longer_than_the_best_way(rtt_ms: int, hard_share: float) -> None:
    rng, rtt_s, pace = random.Random(rtt_ms), rtt_ms / 1000, Pace()
    took: dict[Kind, list[float]] = {EASY: [], HARD: []}
    asked: dict[Kind, list[float]] = {EASY: [], HARD: []}
    for number in range(420):
        kind = HARD if rng.random() < hard_share else EASY
        spent_s = answered_s(kind, rtt_s, pace, rng)
        if number >= 20:
            took[kind].append(spent_s)
            asked[kind].append(answered_s(kind, rtt_s, Pace(), rng, always_ask=True))
    for kind, times in took.items():
        best_s = min(streamed_s(kind, rtt_s), sum(asked[kind]) / len(asked[kind]))
        assert sum(times) / len(times) <= 1.1 * best_s


def measured(travel_s: float, stream_s: float) -> Pace:
    pace = Pace()
    for mean, value in ((pace.edge_step_s, EDGE_S), (pace.travel_s, travel_s), (pace.verify_s, VERIFY_S)):
        mean.add(value)
    pace.streamed(stream_s)
    return pace


@given(travel=st.floats(1e-4, 0.2), acceptance=st.floats(0.1, 1.0), excess=st.floats(0.5, 2.0))
def test_a_pass_is_worth_three_tenths_of_the_time(travel: float, acceptance: float, excess: float) -> None:
    pace = measured(travel, 1.0)
    pace.acceptance.value = acceptance
    course = Course(pace, may_be_alone=False)
    asked = worthwhile_drafts(course)
    asking_s = asking_s_per_token(EDGE_S, travel + VERIFY_S, course.acceptance, 0.0, 16, asked)
    pace.stream_step_s.value = asking_s / excess
    if abs(excess - 1.3) > 1e-6:
        assert prefers_streaming(course, None) is (excess > 1.3)


def learned() -> Pace:
    """A pace over a link of 20 ms, after as many easy answers as hard ones."""
    rng, pace = random.Random(1), Pace()
    for _ in range(60):
        for kind in (EASY, HARD):
            answered_s(kind, 0.02, pace, rng, always_ask=True)
    pace.streamed(STEP_S)
    return pace


def test_the_first_unit_tells_which_kind_it_is() -> None:
    pace = learned()
    hard, easy = (Course(pace, may_be_alone=False) for _ in range(2))
    assert hard.acceptance == easy.acceptance, "nothing was drafted"
    hard.decided([HARD.sure] * 16, alone=False)
    easy.decided([EASY.sure] * 16, alone=False)
    assert hard.acceptance < 0.85 < 0.95 < easy.acceptance
    assert prefers_streaming(hard, None)
    assert not prefers_streaming(easy, None)


def test_hard_answers_do_not_shorten_the_drafts_of_easy_ones() -> None:
    pace = learned()
    pace.travel_s.value = HOP_S
    assert worthwhile_drafts(Course(pace, may_be_alone=False)) == 16
    hard = Course(pace, may_be_alone=False)
    hard.decided([HARD.sure] * 16, alone=False)
    assert worthwhile_drafts(hard) < 14


@given(sure=st.floats(0.0, 1.0), verdicts=st.lists(st.tuples(st.integers(1, 16), st.integers(0, 16)), max_size=20))
def test_a_class_begins_where_all_answers_are(sure: float, verdicts: list[tuple[int, int]]) -> None:
    pace = Pace()
    for drafted, stands in verdicts:
        course = Course(pace, may_be_alone=True)
        course.decided([0.99] * drafted, alone=stands > 8)
        course.visited(drafted, min(stands, drafted))
    course = Course(pace, may_be_alone=True)
    before = pace.acceptance.get(1.0), pace.alone.get(1.0)
    course.decided([sure] * 3, alone=False)
    assert 0.0 <= course.alone <= 1.0
    assert 0.0 <= course.acceptance <= 1.0
    if sure < 0.97:
        assert course.acceptance == pytest.approx(before[0])
        assert pace.alone.get(1.0) <= before[1]

"""Drafts by looking back: where they come from, how long they get, and what they may take of a step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cloud.blocks import BlockPool
from tiermesh.cloud.drafting import add_drafts
from tiermesh.cloud.drafts import LONGEST, DraftCounts, Drafter, DraftLength
from tiermesh.cloud.request import Job, Sequence
from tiermesh.cloud.scheduler import Work
from tiermesh.common.types import Sampling

# Few ids, so that much repeats.
texts = st.lists(st.integers(0, 3), max_size=60)


@given(start=texts, more=st.lists(st.tuples(texts, st.integers(0, 20)), max_size=6))
def test_a_draft_is_what_followed_the_same_ids(start: list[int], more: list[tuple[list[int], int]]) -> None:
    """Whenever it is asked: some earlier place has the same last three ids, and the draft is how that one went on."""
    drafter, tokens = Drafter(DraftCounts()), start
    for new, room in more:
        tokens = tokens + new
        draft = drafter.propose(tokens, room)
        sources = [s for s in range(3, len(tokens)) if tokens[s - 3 : s] == tokens[-3:]]
        assert len(draft) == (min(room, drafter.length.ids) if sources else 0)
        whole = tokens + draft
        assert not draft or any(whole[s : s + len(draft)] == draft for s in sources)


def test_a_match_is_followed_past_places_that_begin_alike() -> None:
    """The latest `1 2 3` went on with 9, the one that is being copied with 4."""
    copied = [7, 8, 1, 2, 3, 4, 5, 6]
    tokens = [*copied, 1, 2, 3, 9, *copied[:3]]
    drafter = Drafter(DraftCounts())
    assert drafter.propose(tokens, 2) == [2, 3]
    assert drafter.propose([*tokens, 2, 3], 2) == [4, 5]
    assert Drafter(DraftCounts()).propose([1, 2, 3, 4, 1, 2, 3, 9, 5, 1, 2, 3], 1) == [9], "without one, the latest"


def test_what_repeats_is_copied_beyond_its_end() -> None:
    assert Drafter(DraftCounts()).propose([5, 6, 7, 5, 6, 7, 5], 4) == [6, 7, 5, 6]


@pytest.mark.parametrize("likely", [0.75, 0.85, 0.9])
def test_the_length_holds_the_acceptance_at_its_target(likely: float) -> None:
    """Each id stands with the same probability if those before it do; the controller finds the length."""
    draws, length = random.Random(0), DraftLength()
    drafted = accepted = 0
    for step in range(4000):
        ids, stands = length.ids, 0
        while stands < ids and draws.random() < likely:
            stands += 1
        length.saw(ids, stands, stands + 1)
        if step > 200:
            drafted, accepted = drafted + ids, accepted + stands
    assert accepted / drafted == pytest.approx(DraftLength.TARGET, abs=0.06)


def test_the_length_goes_as_far_as_it_may_and_down_to_nothing() -> None:
    length = DraftLength()
    for _ in range(20):
        length.saw(length.ids, length.ids, length.ids + 1)
    assert length.ids == LONGEST
    for _ in range(20):
        length.saw(length.ids, 0, 1)
        assert 0 <= length.ids <= LONGEST
    drafted = sum(_step_in_vain(length) for _ in range(4000))
    assert 0 < drafted < 80, "it tries again, ever more rarely"
    while not length.ids:
        length.saw(0, 0, 1)
    for _ in range(8):
        length.saw(length.ids, length.ids, length.ids + 1)
    assert length.ids > 4, "and comes back when it pays"


def _step_in_vain(length: DraftLength) -> int:
    ids = length.ids
    length.saw(ids, 0, 1)
    return ids


def generating(number: int, tokens: list[int], pool: BlockPool, max_tokens: int = 100) -> Sequence:
    sequence = Sequence(number, Job.GENERATE, 4, tokens, max_tokens, Sampling(), frozenset(), arrival=number)
    sequence.computed = len(tokens) - 1
    assert pool.grow(sequence.blocks, len(tokens))
    return sequence


LOOP = [1, 2, 3, 4] * 4


def test_drafts_share_what_the_budget_has_left() -> None:
    pool, counts = BlockPool(40, 16), DraftCounts()
    plan = [Work(generating(i, list(LOOP), pool), 1) for i in range(3)]
    works = add_drafts(plan, 8, pool, counts)
    assert [work.count for work in works] == [1 + 3, 1 + 3, 1 + 2]
    assert [work.wanted for work in works] == [4, 4, 3]
    assert [work.count for work in plan] == [1, 1, 1]


def test_no_draft_passes_the_end_of_the_answer() -> None:
    pool = BlockPool(40, 16)
    sequence = generating(1, list(LOOP), pool, max_tokens=len(LOOP) - 4 + 3)
    (work,) = add_drafts([Work(sequence, 1)], 99, pool, DraftCounts())
    assert len(sequence.draft) == 2
    assert work.count == 3


def test_nobody_gives_up_a_block_for_a_draft() -> None:
    pool = BlockPool(1, 16)
    sequence = generating(1, list(LOOP), pool)
    (work,) = add_drafts([Work(sequence, 1)], 99, pool, DraftCounts())
    assert (work.count, sequence.draft, len(sequence.blocks), pool.free) == (1, [], 1, 0)


def test_who_reads_keeps_the_step_to_itself() -> None:
    pool = BlockPool(40, 16)
    reading = generating(2, list(LOOP), pool)
    reading.computed = 0
    plan = [Work(generating(1, list(LOOP), pool), 1), Work(reading, 12)]
    assert add_drafts(plan, 99, pool, DraftCounts()) == plan


def test_a_guess_does_not_outlive_its_step() -> None:
    """Preempted, a sequence drops what it guessed; a session keeps the draft that it was asked about."""
    pool = BlockPool(40, 16)
    sequence = generating(1, list(LOOP), pool)
    add_drafts([Work(sequence, 1)], 99, pool, DraftCounts())
    assert sequence.draft
    sequence.pause()
    assert (sequence.draft, sequence.pending) == ([], 1)
    session = Sequence(2, Job.VERIFY, 4, list(LOOP), 100, Sampling(), frozenset())
    session.ask((), (5, 6))
    session.pause()
    assert session.draft == [5, 6]

"""The loop of `bench curve` with toy models: texts are right on policy, costs are the worker's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.bench.curve_loop import Ids, Run, by_chance, by_score, by_truth, indifferent, run
from tiermesh.bench.curve_sources import NGRAM_DRAFT, Choices, Ngrams, Nobody, Remembered, lookup
from tiermesh.cloud.outputs import Verified
from tiermesh.cloud.progress import Progress, Stages
from tiermesh.cloud.request import Choice, Job, Sequence
from tiermesh.cloud.scheduler import Work
from tiermesh.common.detokenize import Detokenizer
from tiermesh.common.types import Sampling
from tiermesh.edge.calibration import ScoreMap

Make = Callable[..., Any]
PROMPT = 7
seeds = st.integers(0, 10**6)
skills = st.sampled_from([0.0, 0.6, 0.9, 0.99, 1.0])
lengths = st.integers(1, 50)


@given(seeds, skills, lengths)
def test_always_asking_gives_the_cloud_s_text(toy: Make, seed: int, skill: float, tokens: int) -> None:
    one = toy(seed, skill, tokens)
    done = run(one.edge, one.cloud, indifferent, math.inf, PROMPT, one.limits)
    assert done.ids == one.text
    assert done.alone == 0
    assert done.passes == done.units <= len(done.ids)
    assert one.cloud.shares(done.ids) == [1.0] * len(done.ids)


@given(seeds, skills, lengths)
def test_never_asking_gives_the_edge_s_text_for_nothing(toy: Make, seed: int, skill: float, tokens: int) -> None:
    one = toy(seed, skill, tokens)
    answer: Ids = ()
    while not one.limits.over(answer):
        answer += one.edge.unit(answer).ids
    done = run(one.edge, one.cloud, indifferent, -math.inf, PROMPT, one.limits)
    assert (done.ids, done.passes, done.positions, one.source.reads) == (answer, 0, 0, 0)


@given(seeds, lengths, st.lists(st.integers(1, 8), max_size=30))
def test_drafts_from_n_grams_leave_the_text_as_it_is(toy: Make, seed: int, tokens: int, prompt: list[int]) -> None:
    one = toy(seed, 1.0, tokens)
    plain = run(Nobody(), one.cloud, indifferent, math.inf, PROMPT, one.limits)
    drafted = run(Ngrams(prompt, one.limits), one.cloud, indifferent, math.inf, PROMPT, one.limits)
    assert plain.ids == drafted.ids == one.text
    assert (plain.passes, plain.positions) == (len(one.text), PROMPT + len(one.text) - 1)
    assert drafted.passes <= plain.passes
    assert drafted.positions >= PROMPT + len(one.text) - drafted.passes


def test_repeating_text_is_drafted_from_itself() -> None:
    known = (5, 6, 7, 8) * 4
    assert lookup(known, NGRAM_DRAFT) == (5, 6, 7, 8)
    assert lookup((5, 6, 1, 6, 2, 5, 6), 1) == (1,), "the longer n-gram decides, not the later place"
    assert lookup((1, 6, 2, 6, 3, 6), 2) == (3, 6), "of places alike the latest"


@given(st.lists(st.integers(0, 3), max_size=25).map(tuple), st.integers(0, 12))
def test_a_lookup_continues_an_earlier_place_of_the_longest_ending(known: Ids, most: int) -> None:
    found = lookup(known, most)
    matches = {
        size: [at for at in range(size, len(known)) if known[at - size : at] == known[len(known) - size :]]
        for size in (1, 2, 3)
        if size < len(known)
    }
    longest = max((size for size, places in matches.items() if places), default=0)
    assert found == (known[matches[longest][-1] :][:most] if longest else ())


@given(seeds, skills, lengths, st.floats(0, 1))
def test_costs_are_what_the_worker_counts(toy: Make, seed: int, skill: float, tokens: int, threshold: float) -> None:
    one = toy(seed, skill, tokens)
    worker = Worker(one.source.choice, one.limits.end_ids, tokens)
    done = run(one.edge, worker, by_chance(str(seed)), threshold, PROMPT, one.limits)
    assert (done.passes, done.positions) == (worker.passes, worker.positions)
    assert done.units == done.alone + done.passes
    assert done.passes <= len(done.ids) <= tokens


@given(seeds, skills, st.floats(0, 1))
def test_what_was_shown_alone_is_gone_on_from(toy: Make, seed: int, skill: float, threshold: float) -> None:
    one = toy(seed, skill)
    places: list[int] = []

    def rank(answer: Ids, unit: Any) -> float:
        places.append(len(answer))
        return by_chance(str(seed))(answer, unit)

    done = run(one.edge, one.cloud, rank, threshold, PROMPT, one.limits)
    for begin, end in zip(places, [*places[1:], len(done.ids)], strict=True):
        shown, unit = done.ids[begin:end], one.edge.unit(done.ids[:begin]).ids
        alone = by_chance(str(seed))(done.ids[:begin], None) >= threshold
        told = [one.source.choice(done.ids[:place]) for place in range(begin, end)]
        assert list(shown) == (list(unit) if alone else told)


@settings(max_examples=60)
@given(seeds, st.sampled_from([0.5, 0.9, 0.97]))
def test_an_oracle_gives_the_cloud_s_text_for_fewer_passes(
    toy: Make, product: ScoreMap, seed: int, skill: float
) -> None:
    one = toy(seed, skill)
    always = run(one.edge, one.cloud, indifferent, math.inf, PROMPT, one.limits)
    wise = run(one.edge, one.cloud, by_truth(one.cloud, product), 2.0, PROMPT, one.limits)
    assert wise.ids == one.text
    # Each pass of either mends one wrong id at most, and the oracle's always do.
    assert wise.passes <= always.passes
    assert wise.passes == sum(one.text[i] != first(one, i) for i in range(len(one.text)))


def first(one: Any, place: int) -> int:
    """The edge's id at a place of the cloud's text."""
    token: int = one.edge.unit(one.text[:place]).ids[0]
    return token


@given(seeds, st.floats(0, 1))
def test_memories_change_nothing_and_ask_once(toy: Make, product: ScoreMap, seed: int, threshold: float) -> None:
    one, other = toy(seed), toy(seed)
    kept = Remembered(one.edge)
    for rank, at in ((indifferent, math.inf), (by_score(product), threshold), (by_truth(one.cloud, product), 1.0)):
        expected: Run = run(other.edge, Choices(other.source.read), rank, at, PROMPT, other.limits)
        for _ in range(2):
            assert run(kept, one.cloud, rank, at, PROMPT, one.limits) == expected
        assert one.cloud.shares(expected.ids) == other.source.read(expected.ids)[1]
        reads = one.source.reads
        run(kept, one.cloud, rank, at, PROMPT, one.limits)
        one.cloud.shares(expected.ids)
        assert one.source.reads == reads


def test_what_a_cloud_told_first_holds() -> None:
    told = iter([([1, 2], [0.5]), ([3, 4, 5], [0.1, 0.2])])
    cloud = Choices(lambda answer: next(told))
    assert cloud.after((), (7,)) == (1, 2)
    assert cloud.after((), (7, 8)) == (1, 2, 5)
    assert cloud.shares((7, 8)) == [0.5, 0.2]


class Worker:
    """The real worker's bookkeeping of one verify session, with the toy's choices in place of a model."""

    def __init__(self, choice: Callable[[Ids], int], end_ids: frozenset[int], tokens: int) -> None:
        self.passes = self.positions = 0
        self._choice = choice
        self._known = 0
        ids = [3] * PROMPT
        self._sequence = Sequence(0, Job.VERIFY, PROMPT, ids, tokens, Sampling(), end_ids)
        text = Detokenizer([b"a"] * 9)
        self._progress = Progress(self._sequence, lambda ids: Detokenizer([b"a"] * 9), text, Stages(0.0))

    def after(self, answer: Ids, draft: Ids) -> Ids:
        """Takes an ask as the edge sends it: what was shown alone since the last one, and the draft."""
        sequence, whole = self._sequence, answer + draft
        told = tuple(self._choice(whole[:end]) for end in range(len(answer), len(whole) + 1))
        labels = tuple(self._choice(whole[:end]) for end in range(self._known, len(answer)))
        sequence.ask(answer[self._known :], draft)
        self.passes += 1
        self.positions += sequence.pending
        choices = [Choice(token) for token in labels + told]
        assert len(choices) == sequence.total - sequence.first_wanted
        (verdict,) = self._progress.advance(Work(sequence, sequence.pending), choices, 0.0)
        assert isinstance(verdict, Verified)
        self._known = len(sequence.tokens) - PROMPT
        return told

"""Inner exits: whatever is drafted, the text and its probabilities are those of the full depth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.errors import ModelDirError
from tiermesh.common.model_dir import digests, model_digest
from tiermesh.common.types import Sampling
from tiermesh.edge.artifact import ExitPoint, read_artifact
from tiermesh.edge.drafting import LocalDraft
from tiermesh.edge.exits import Costs, ExitAccount, Exits
from tiermesh.edge.model import EdgeModel
from tiermesh.edge.sampling import Picker
from tiermesh.edge.split import MAX_DRAFTS, Guess, SplitState
from tiermesh.edge.units import Borders, Unit

CURVE = (ExitPoint(0.0, 1.0, 0.9), ExitPoint(0.9, 0.4, 0.99))
FREE_ROWS = Costs(shallow_s=1e-4, deep_s=1.0, row_s=1e-4)
"""Segments with which drafting always pays, so that tests draft."""
ROUNDING = 1e-4
"""Of logits between batch shapes. Stepped against run at once, the whole graph differs by up to 3.9e-5 (300 texts); one
wrong id moves a logit by 0.3 or more."""
BORDERS = Borders(frozenset({40}), frozenset({1}))


def unrounded(directory: Path) -> None:
    """Let the graphs take activations as float32: rounded to 8 bits, a last bit of one sum moves a random model's
    logits by 0.1, and no bound near 1e-5 could be tested.
    """
    for path in directory.glob("*.onnx"):
        graph = onnx.load(path)
        for node in graph.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
        onnx.save(graph, path)
    facts = json.loads((directory / "edge.json").read_text())
    facts["digests"]["model"] = model_digest(directory)
    (directory / "edge.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def split_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_exit, write_random_model

    root = tmp_path_factory.mktemp("split")
    model = write_random_model(root / "hf", layers=3, hidden=64, max_length=256)
    export_edge(model, root / "whole")
    export_edge(write_random_exit(model, 1, CURVE, shortlist=300), root / "split")
    unrounded(root / "whole")
    unrounded(root / "split")
    return root


@pytest.fixture(scope="module")
def split(split_dir: Path) -> EdgeModel:
    return EdgeModel.load(read_artifact(split_dir / "split"))


@pytest.fixture(scope="module")
def whole(split_dir: Path) -> EdgeModel:
    return EdgeModel.load(read_artifact(split_dir / "whole"))


class Scripted(SplitState):
    """Guesses as told by a function of the place, instead of the inner exit's own guess."""

    def guess_by(self, told: Callable[[int, int], int]) -> Scripted:
        self.told = told
        return self

    def peek(self, new: Sequence[int]) -> Guess:
        guess = super().peek(new)
        return Guess(self.told(len(self.ids) + len(self._queue), guess.id), 1.0)


def scripted(model: EdgeModel, told: Callable[[int, int], int]) -> Scripted:
    inner = model.artifact.inner_exit
    assert inner is not None
    return Scripted(*model.sessions, model.artifact.architecture, inner.layers).guess_by(told)


def account() -> ExitAccount:
    """One that drafts whenever the guess is on the shortlist."""
    return ExitAccount(FREE_ROWS, CURVE[0])


def units(draft: LocalDraft, prompt: list[int], tokens: int, replaced: Sequence[int] = ()) -> list[Unit]:
    """Units one after the other; in every second one the id at a place in `replaced` is changed, as a verdict would."""
    known, found = list(prompt), []
    while len(known) < len(prompt) + tokens:
        unit = draft._unit(known, len(prompt) + tokens - len(known), None)
        found.append(unit)
        cut = [place for place in replaced if place < len(unit.ids)]
        if len(found) % 2 and cut:
            known += [*unit.ids[: cut[0]], 50 + cut[0]]
        else:
            known += unit.ids
    return found


SAMPLINGS = st.sampled_from(
    [
        Sampling(),
        Sampling(repetition_penalty=1.3, frequency_penalty=0.2),
        Sampling(temperature=0.8, top_k=40, seed=7),
        Sampling(temperature=0.8, seed=8, presence_penalty=0.5, repetition_penalty=1.1),
    ]
)


@given(
    sampling=SAMPLINGS,
    prompt=st.lists(st.integers(3, 319), min_size=1, max_size=6),
    kind=st.sampled_from(["exit", "right", "wrong", "mixed"]),
    replaced=st.lists(st.integers(0, 10), max_size=2),
)
@settings(max_examples=30, deadline=None)
def test_drafts_change_nothing_that_is_seen(
    split: EdgeModel, whole: EdgeModel, sampling: Sampling, prompt: list[int], kind: str, replaced: list[int]
) -> None:
    def draft(state, exits=None):
        picker = Picker(sampling, len(prompt), True)
        with ThreadPoolExecutor(1) as thread:
            return LocalDraft(state, picker, BORDERS, thread, lambda _: None, exits)

    plain = units(draft(whole.sequence()), prompt, 48, replaced)
    # What the drafts should be to be right, by place; behind a replaced id they are another text's.
    spoken = dict(enumerate([*prompt, *(i for unit in plain for i in unit.ids)])) if not replaced else {}
    guesses = {
        "exit": lambda place, own: own,
        "right": lambda place, own: spoken.get(place, own),
        "wrong": lambda place, own: (spoken.get(place, own) + 1) % 320,
        "mixed": lambda place, own: spoken.get(place, own) if place % 3 else 77,
    }
    exits = account()
    ahead = units(draft(scripted(split, guesses[kind]), exits), prompt, 48, replaced)
    assert [unit.ids for unit in ahead] == [unit.ids for unit in plain]
    for one, other in zip(ahead, plain, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    if kind == "right" and not replaced:
        assert exits.accepted == exits.drafted > 20
    if kind == "wrong" and not replaced:
        assert exits.accepted == 0 < exits.drafted


@given(moves=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_a_queue_may_be_left_at_any_place(split: EdgeModel, moves: list[tuple[int, int, bool]]) -> None:
    """After any unfinished drafts, verified or not, the outputs are those of a run from scratch."""
    state, fresh = split.sequence(), split.sequence()
    assert isinstance(state, SplitState)
    known = [0, 60, 61]
    state.catch_up(known)
    for new, passed, deep in moves:
        state.peek((5,))
        for guess in range(min(new, MAX_DRAFTS)):
            state.peek((6 + guess,))
        if deep:
            state.deepen()
            for _ in range(min(passed, new, MAX_DRAFTS) + 1):
                state.advance()
        known = [*known[: len(known) - new % 3], 70 + new]
        state.catch_up(known)
        assert state.ids == known
    fresh.catch_up(known)
    np.testing.assert_allclose(state.logits, fresh.logits, atol=ROUNDING)
    # The entropy moves by about as much as the logits that it comes from.
    np.testing.assert_allclose(state.features, fresh.features, atol=ROUNDING)


def test_two_segments_say_what_the_whole_says(split: EdgeModel, whole: EdgeModel) -> None:
    cut, one = split.sequence(), whole.sequence()
    for known in ([5] * 40, [5] * 20 + [9] * 30, [7], [7, 8], [7, 8, 9, 10, 11]):
        cut.catch_up(known)
        one.catch_up(known)
        np.testing.assert_allclose(cut.logits, one.logits, atol=ROUNDING)
        assert cut.token[0] == one.token[0] == one.logits[0, 0].argmax()


def test_the_cache_is_bounded_for_drafts_too(split: EdgeModel) -> None:
    state = split.sequence()
    assert isinstance(state, SplitState)
    state.catch_up([5] * 255)
    state.peek((6,))
    with pytest.raises(ValueError, match="full"):
        state.peek((7,))


def test_the_shortlist_bounds_what_is_guessed(split: EdgeModel) -> None:
    state = split.sequence()
    assert isinstance(state, SplitState)
    guessed = []
    for first in range(3, 320, 4):
        state.catch_up([first])
        guessed.append(state.peek((first,)))
    assert all(guess.id == -1 or 20 <= guess.id < 320 for guess in guessed)
    assert all(0 < guess.probability <= 1 for guess in guessed)
    assert len({guess.id for guess in guessed}) > 5


@pytest.fixture
def broken(split_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(split_dir / "split", tmp_path / "broken"))


def change(directory: Path, **facts: object) -> None:
    told = json.loads((directory / "edge.json").read_text())
    told["inner_exit"] |= facts
    (directory / "edge.json").write_text(json.dumps(told))


@pytest.mark.parametrize("name", ["shallow.onnx", "deep.onnx"])
def test_each_segment_is_bound_by_the_digest(broken: Path, name: str) -> None:
    assert digests(broken).model == read_artifact(broken).digests.model
    whole = (broken / name).read_bytes()
    (broken / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelDirError, match=f"{name}.*not the file"):
        read_artifact(broken)
    (broken / name).unlink()
    with pytest.raises(ModelDirError, match=f"no {name}"):
        read_artifact(broken)


@pytest.mark.parametrize(
    "facts",
    [
        {"layers": 0},
        {"layers": 3},
        {"curve": []},
        {"curve": [{"min_probability": 0.5, "drafted": 2, "acceptance": 0.5}]},
        {"curve": [{"min_probability": 0.5, "drafted": float("nan"), "acceptance": 0.5}]},
        {"curve": [{"min_probability": 0.5, "drafted": 0.5}]},
    ],
)
def test_a_broken_description_is_refused(broken: Path, facts: dict[str, object]) -> None:
    change(broken, **facts)
    with pytest.raises(ModelDirError, match="is broken"):
        read_artifact(broken)


def test_segments_cut_elsewhere_are_refused(broken: Path) -> None:
    change(broken, layers=2)
    with pytest.raises(ModelDirError, match="not the graph"):
        EdgeModel.load(read_artifact(broken))


shares = st.floats(0.0, 1.0)


@given(shares, shares, st.floats(1e-5, 1.0), st.floats(1e-5, 1.0), st.floats(1e-6, 1.0), st.integers(1, MAX_DRAFTS + 1))
def test_costs_are_those_of_the_cycles_themselves(
    drafted: float, acceptance: float, shallow_s: float, deep_s: float, row_s: float, rows: int
) -> None:
    costs = Costs(shallow_s, deep_s, row_s)
    spent = tokens = reach = stands = 0.0
    reach = stands = 1.0
    spent, tokens = shallow_s + deep_s, 1.0
    for _ in range(rows - 1):
        reach, stands = reach * drafted, stands * drafted * acceptance
        spent, tokens = spent + reach * (shallow_s + row_s), tokens + stands
    assert costs.per_token(drafted, acceptance, rows) == pytest.approx(spent / tokens)
    best = costs.best_rows(drafted, acceptance)
    assert costs.per_token(drafted, acceptance, best) <= costs.per_token(drafted, acceptance, rows) * (1 + 1e-9)


def test_drafting_goes_off_when_drafts_fail_and_on_again_when_they_stand() -> None:
    kept = ExitAccount(Costs(1.0, 2.0, 0.3), ExitPoint(0.5, 0.9, 0.95))
    guess, moves = Guess(7, 0.9), []
    assert kept.on
    for right in (False, True):
        before = kept.on
        for token in range(2000):
            kept.saw(guess, 7 if right else 8)
            if kept.on != before:
                moves.append(token)
                before = kept.on
    assert len(moves) == 2, "once off, once on"
    assert moves[0] < 400
    assert moves[1] < 1000


def test_where_every_draft_costs_a_whole_pass_nothing_is_drafted() -> None:
    exits = Exits(Costs(shallow_s=1.0, deep_s=1.0, row_s=1.0), CURVE)
    assert not exits.greedy.on
    assert exits.greedy.cost_ratio == 1.0
    assert not exits.greedy.wants(Guess(5, 1.0), 0)
    assert Exits(FREE_ROWS, CURVE).sampled.wants(Guess(5, 1.0), 0)
    assert Exits(FREE_ROWS, CURVE).sampled.cost_ratio < 1.0
    assert not Exits(FREE_ROWS, CURVE).sampled.wants(Guess(-1, 1.0), 0)


def test_the_point_is_chosen_by_what_the_segments_cost() -> None:
    wide, strict = ExitPoint(0.3, 0.95, 0.8), ExitPoint(0.9, 0.6, 0.99)
    assert Costs(0.01, 1.0, 0.01).best_point((wide, strict)) == wide
    assert Costs(0.9, 1.0, 0.9).best_point((wide, strict)) == strict

"""The artifact, the graph and its KV caches, and drafting on the model's thread."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.errors import ModelDirError
from tiermesh.common.types import Sampling
from tiermesh.edge.artifact import read_artifact
from tiermesh.edge.drafting import Doubt, LocalDraft
from tiermesh.edge.model import EdgeModel
from tiermesh.edge.sampling import Picker
from tiermesh.edge.sequence import SequenceState
from tiermesh.edge.units import UNIT_TOKENS, Borders


@pytest.fixture(scope="module")
def model(edge_dir: Path) -> EdgeModel:
    return EdgeModel.load(read_artifact(edge_dir))


def fresh_logits(model: EdgeModel, ids: list[int]) -> np.ndarray:
    state = model.sequence()
    state.catch_up(ids)
    return state.logits.copy()


@given(
    moves=st.lists(
        st.tuples(st.integers(0, 20), st.lists(st.integers(3, 319), min_size=1, max_size=12)), min_size=1, max_size=6
    )
)
@settings(max_examples=25, deadline=None)
def test_rolling_back_leaves_no_trace(model: EdgeModel, moves: list[tuple[int, list[int]]]) -> None:
    """After any drafts and roll-backs, the outputs are, to the bit, those of a twin that never drafted.

    The twin takes its ids in the same portions: a portion's length decides how the attention's sums round, and an
    activation that then rounds to the next of its 8 bits moves logits by hundredths.
    """
    state, twin, known = model.sequence(), model.sequence(), [0]
    for back, new in moves:
        known = known[: max(1, len(known) - back)] + new
        state.catch_up(known)
        twin.catch_up(known)
        for drafted in (1, 2, 1):
            state.step(drafted)
    state.catch_up(known)
    twin.catch_up(known)
    assert state.ids == known
    np.testing.assert_array_equal(state.logits, twin.logits)


def test_a_step_is_a_prefill_by_one(model: EdgeModel) -> None:
    ids = [0, 40, 41, 42, 43, 44]
    state = model.sequence()
    state.catch_up(ids[:1])
    for token in ids[1:]:
        state.step(token)
    np.testing.assert_allclose(state.logits, fresh_logits(model, ids), atol=2e-5)


def test_outputs_agree_with_the_logits(model: EdgeModel) -> None:
    state = model.sequence()
    state.catch_up([0, 50, 60, 70])
    logits = state.logits[0, 0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    first, second = np.sort(probabilities)[::-1][:2]
    entropy = -(probabilities * np.log(probabilities)).sum()
    assert state.token[0] == logits.argmax()
    np.testing.assert_allclose(state.features[0], [first, first - second, entropy], rtol=1e-4)


def test_two_sequences_do_not_mix(model: EdgeModel) -> None:
    one, two = model.sequence(), model.sequence()
    one.catch_up([0, 30, 31])
    two.catch_up([0, 90, 91, 92])
    one.step(32)
    two.step(93)
    np.testing.assert_allclose(one.logits, fresh_logits(model, [0, 30, 31, 32]), atol=2e-5)
    np.testing.assert_allclose(two.logits, fresh_logits(model, [0, 90, 91, 92, 93]), atol=2e-5)


def test_the_cache_is_bounded(model: EdgeModel) -> None:
    state = model.sequence()
    with pytest.raises(ValueError, match="256"):
        state.catch_up([5] * 257)
    with pytest.raises(ValueError, match="not 0"):
        state.catch_up([])
    state.catch_up([5] * 256)
    with pytest.raises(ValueError, match="full"):
        state.step(5)


@pytest.fixture
def broken(edge_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(edge_dir, tmp_path / "broken"))


def change(directory: Path, edit: Callable[[dict], None]) -> None:
    facts = json.loads((directory / "edge.json").read_text())
    edit(facts)
    (directory / "edge.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ["edge.json", "edge.onnx", "tokenizer.json"])
def test_a_missing_file_is_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(ModelDirError, match=f"no {name}"):
        read_artifact(broken)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.update(format=99), "format 99"),
        (lambda f: f.pop("bits"), "bits"),
        (lambda f: f["architecture"].update(layers="two"), "layers"),
        (lambda f: f.update(eos_ids=[320]), "eos_ids"),
        (lambda f: f["digests"].update(model="0" * 64), "not the file"),
    ],
)
def test_a_broken_description_is_refused(broken: Path, edit: Callable[[dict], None], message: str) -> None:
    change(broken, edit)
    with pytest.raises(ModelDirError, match=message):
        read_artifact(broken)


def test_other_bytes_under_the_same_name_are_refused(broken: Path) -> None:
    (broken / "edge.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelDirError, match="not the file"):
        read_artifact(broken)


def test_a_graph_of_another_shape_is_refused(broken: Path) -> None:
    change(broken, lambda f: f["architecture"].update(layers=3))
    with pytest.raises(ModelDirError, match="not the graph"):
        EdgeModel.load(read_artifact(broken))


BORDERS = Borders(frozenset(), frozenset())


async def test_a_unit_is_what_the_model_says_greedily(model: EdgeModel) -> None:
    known, expected = [0, 65, 66], []
    state = model.sequence()
    for _ in range(UNIT_TOKENS):
        state.catch_up(known + expected)
        expected.append(int(state.logits[0, 0].argmax()))
    with ThreadPoolExecutor(1) as thread:
        draft = LocalDraft(model.sequence(), Picker(Sampling(), 3, False), BORDERS, thread, lambda _: None)
        unit = await draft.unit(known, 100)
        again = await draft.unit([*known, expected[0], 200], 5)
        draft.close()
    assert list(unit.ids) == expected
    assert len(again.ids) == 5
    assert draft.tokens == UNIT_TOKENS + 5
    assert draft.prefill_s > 0
    assert draft.decode_s > 0


async def test_units_end_with_lines_ends_and_room(model: EdgeModel) -> None:
    with ThreadPoolExecutor(1) as thread:

        async def unit(borders: Borders, room: int) -> tuple[int, ...]:
            draft = LocalDraft(model.sequence(), Picker(Sampling(), 3, False), borders, thread, lambda _: None)
            return (await draft.unit([0, 65, 66], room)).ids

        whole = await unit(BORDERS, 100)
        cut = next(i for i in range(2, UNIT_TOKENS) if whole[i] not in whole[:i])
        assert await unit(Borders(frozenset({whole[cut]}), frozenset()), 100) == whole[: cut + 1]
        assert await unit(Borders(frozenset(), frozenset({whole[cut]})), 100) == whole[: cut + 1]
        assert await unit(BORDERS, 2) == whole[:2]


async def test_a_unit_in_doubt_is_cut_where_more_drafts_do_not_pay(model: EdgeModel) -> None:
    with ThreadPoolExecutor(1) as thread:
        draft = LocalDraft(model.sequence(), Picker(Sampling(), 3, False), BORDERS, thread, lambda _: None)
        whole = await draft.unit([0, 65, 66], 100)
        for enough in (1, 5, UNIT_TOKENS):
            told: list[None] = []
            doubt = Doubt(lambda begun: True, lambda told=told: told.append(None), enough)
            unit = await draft.unit([0, 65, 66], 100, doubt)
            assert unit.ids == whole.ids[:enough]
            assert unit.cut == (enough < UNIT_TOKENS)
            assert told == [None]
        sure = await draft.unit([0, 65, 66], 100, Doubt(lambda begun: False, lambda: None, 1))
        assert (sure.ids, sure.cut) == (whole.ids, False)
        draft.close()


async def test_cancelling_stops_the_thread_before_the_cache_is_reused(model: EdgeModel) -> None:
    """The KV cache comes back only when the thread has let go of it."""
    gate, entered, released = threading.Event(), threading.Event(), []

    class SlowPicker(Picker):
        def pick(self, state):
            entered.set()
            gate.wait(5)
            return super().pick(state)

    state = model.sequence()
    with ThreadPoolExecutor(1) as thread:
        draft = LocalDraft(state, SlowPicker(Sampling(), 1, False), BORDERS, thread, released.append)
        task = asyncio.create_task(draft.unit([0], 16))
        await asyncio.to_thread(entered.wait, 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        draft.close()
        draft.close()
        assert released == []
        gate.set()
        async with asyncio.timeout(5):
            while not released:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)
    assert released == [state]
    assert len(state.ids) <= 2, "an interrupted unit stops at the next token"
    assert isinstance(state, SequenceState)

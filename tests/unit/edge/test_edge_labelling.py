"""Labels on policy: as if each unit were asked about by itself, however far ahead was drafted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.errors import InvalidRequest, Unavailable
from tiermesh.common.types import Sampling
from tiermesh.edge.calibrate import classes_of, read_prompts
from tiermesh.edge.calibration import CLASSES
from tiermesh.edge.features import FEATURES
from tiermesh.edge.labelling import Labelled, Task, label_all, label_answer
from tiermesh.edge.measuring import in_hashed_order, task_of
from tiermesh.edge.units import Unit

EOS, PROMPT = 1, (3, 4, 5)


def draw(name: str, ids: Sequence[int]) -> int:
    return hashlib.sha256(f"{name}:{list(ids)}".encode()).digest()[0]


def cloud(salt: int, ids: Sequence[int]) -> int:
    """The cloud's choice after these ids; about one in thirteen ends the answer."""
    value = draw(f"cloud{salt}", ids)
    return EOS if value < 20 else 2 + value % 8


def edge_unit(salt: int, skill: int, known: Sequence[int], room: int) -> Unit:
    """Up to five ids, each right in `skill` of 256 cases; a function of what is known alone."""
    ids: list[int] = []
    while len(ids) < min(room, 5) and ids[-1:] != [EOS]:
        before = [*known, *ids]
        ids.append(cloud(salt, before) if draw(f"edge{salt}", before) < skill else 2 + draw("slip", before) % 9)
    sure = tuple(0.5 + draw("p", [*known, i]) / 600 for i in ids)
    return Unit(tuple(ids), sure, sure, (0.5,) * len(ids), ids[-1] == EOS)


@dataclass
class FunctionDraft:
    """Drafts `edge_unit`."""

    salt: int
    skill: int
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens: int = 0

    async def unit(self, known: Sequence[int], room: int) -> Unit:
        assert room > 0
        return edge_unit(self.salt, self.skill, known, room)

    def close(self) -> None:
        """Nothing to give back."""


@dataclass
class FunctionLabeller:
    """Says what `cloud` says."""

    salt: int
    calls: list[tuple[int, ...]] = field(default_factory=list)

    async def choices(self, ids: Sequence[int], start: int, sampling: Sampling) -> Sequence[int]:
        self.calls.append(tuple(ids))
        return [cloud(self.salt, ids[:place]) for place in range(start, len(ids))]


def by_single_asks(salt: int, skill: int, max_tokens: int) -> list[tuple[int, bool]]:
    """Tokens of each unit and whether it stood, one visit after the other."""
    answer: list[int] = []
    found = []
    while len(answer) < max_tokens and answer[-1:] != [EOS]:
        unit = edge_unit(salt, skill, [*PROMPT, *answer], max_tokens - len(answer))
        stands = 0
        while stands < len(unit.ids) and cloud(salt, [*PROMPT, *answer, *unit.ids[:stands]]) == unit.ids[stands]:
            stands += 1
        found.append((len(unit.ids), stands == len(unit.ids)))
        answer += unit.ids[:stands]
        if stands < len(unit.ids):
            answer.append(cloud(salt, [*PROMPT, *answer]))
    return found


@given(st.integers(0, 500), st.sampled_from([0, 128, 230, 256]), st.integers(1, 60))
@settings(deadline=None)
def test_labels_are_those_of_single_visits(salt: int, skill: int, max_tokens: int) -> None:
    labeller = FunctionLabeller(salt)
    answer = label_answer(FunctionDraft(salt, skill), labeller, Task(PROMPT, Sampling()), max_tokens, {EOS})
    units = asyncio.run(answer)
    assert [(unit.tokens, unit.same) for unit in units] == by_single_asks(salt, skill, max_tokens)
    assert all(len(unit.features) == len(FEATURES) for unit in units)
    assert len(labeller.calls) <= 1 + sum(not unit.same for unit in units) + len(units) // 4
    if skill == 256:
        assert all(unit.same for unit in units)


async def test_answers_run_a_few_at_a_time_and_keep_their_order() -> None:
    running, most = 0, 0

    async def one(task: Task) -> tuple[Labelled, ...]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(task.prompt_ids[0] % 3):
            await asyncio.sleep(0)
        running -= 1
        return (Labelled((float(task.prompt_ids[0]),), 1, True),)

    done: list[None] = []
    tasks = [Task((i,), Sampling()) for i in range(40)]
    units = await label_all(tasks, one, 4, lambda: done.append(None))
    assert [found[0].features[0] for found in units] == list(range(40))
    assert (most, len(done)) == (4, 40)


async def test_the_first_error_ends_all_as_it_is() -> None:
    async def one(task: Task) -> tuple[Labelled, ...]:
        raise Unavailable("the mesh is gone")

    with pytest.raises(Unavailable, match="the mesh is gone"):
        await label_all([Task((1,), Sampling())] * 5, one, 2, lambda: None)


def test_seed_and_temperature_depend_on_prompt_and_class_alone() -> None:
    for sampling in CLASSES[1:]:
        drawn = [task_of(f"prompt {i}", (1,), sampling).sampling for i in range(200)]
        assert all(sampling.holds(each) for each in drawn)
        assert len({each.seed for each in drawn}) == 200
        assert task_of("prompt 3", (1,), sampling).sampling == drawn[3]
        spread = max(each.temperature for each in drawn) - min(each.temperature for each in drawn)
        assert spread > 0.9 * (sampling.up_to - sampling.above)
    assert task_of("x", (1,), CLASSES[0]).sampling == Sampling()


@given(st.lists(st.text(max_size=5), max_size=30))
@settings(deadline=None)
def test_the_order_is_the_prompts_own(prompts: list[str]) -> None:
    ordered = in_hashed_order(prompts)
    assert in_hashed_order(prompts[::-1] + prompts[:3]) == ordered
    assert sorted(ordered) == sorted(set(prompts))


def test_temperatures_name_classes() -> None:
    assert [each.name for each in classes_of([0.0, 0.8, 0.7, 1.0])] == ["greedy", "T<=0.9", "T<=1.3"]
    for wrong in (-1.0, 5.0, float("nan")):
        with pytest.raises(InvalidRequest, match="temperature"):
            classes_of([wrong])


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', '{"prompt": 5}', '{"prompt": ""}'])
def test_a_bad_line_is_named(tmp_path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "dim the lights", "kind": "x"}\n\n' + line + "\n")
    with pytest.raises(InvalidRequest, match=r"prompts\.jsonl:3"):
        read_prompts(path)
    path.write_text('{"prompt": "dim the lights", "kind": "x"}\n\n')
    assert read_prompts(path) == ["dim the lights"]

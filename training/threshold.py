"""The plain trust threshold of a pair: from which score on at most a given share of units differs from the cloud's.

A unit's score is the product of its tokens' probabilities. This is a first setting by counting, without a confidence
statement; units of one prompt depend on each other, so the share it states is an estimate.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import LlamaForCausalLM

from ..edge.units import Borders, line_ends
from .greedy import Answer, EdgeReader, cloud_choices
from .heldout import Prompt

MAX_TOKENS = {"command": 96, "code": 48}


@dataclass(frozen=True, slots=True)
class Judged:
    """A unit of the edge: its score, and whether the cloud would have said the same ids."""

    kind: str
    score: float
    same: bool
    tokens: int


def judge(reader: EdgeReader, cloud: LlamaForCausalLM, prompts: Iterable[Prompt]) -> list[Judged]:
    """All units of the edge's own greedy answers, judged by the cloud's choices after the same prefix."""
    pieces = [reader.tokenizer.decode([token]).encode() for token in range(reader.tokenizer.get_vocab_size())]
    borders = Borders(line_ends(pieces), frozenset(reader.eos_ids))
    judged: list[Judged] = []
    for prompt in prompts:
        ids = reader.tokenizer.encode(prompt.prompt).ids
        answer = reader.answer(ids, MAX_TOKENS[prompt.kind])
        choices = cloud_choices(cloud, [*ids, *answer.ids], len(ids))
        for unit in split_units(answer, borders):
            same = list(answer.ids[unit]) == choices[unit]
            score = math.prod(answer.probabilities[unit])
            judged.append(Judged(prompt.kind, score, same, unit.stop - unit.start))
    return judged


def split_units(answer: Answer, borders: Borders) -> list[slice]:
    """Where the units of an answer lie; the last may be cut short by the token limit."""
    units, start = [], 0
    for end in range(1, len(answer.ids) + 1):
        if end == len(answer.ids) or borders.closes(list(answer.ids[start:end])):
            units.append(slice(start, end))
            start = end
    return units


def choose_threshold(units: Sequence[Judged], share: float) -> float:
    """The lowest score such that among units at or above it at most `share` differ; 1.0 when there is none."""
    chosen, wrong = 1.0, 0
    ordered = sorted(units, key=lambda unit: -unit.score)
    for count, unit in enumerate(ordered, start=1):
        wrong += not unit.same
        tied = count < len(ordered) and ordered[count].score == unit.score
        if wrong <= share * count and not tied:
            chosen = unit.score
    return chosen

"""Toy models for the loop of `bench curve`: what they say hangs on the ids before it and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tiermesh.bench.curve_loop import Ids, Limits
from tiermesh.bench.curve_sources import Choices
from tiermesh.edge.calibration import ScoreMap
from tiermesh.edge.features import FEATURES
from tiermesh.edge.units import UNIT_TOKENS, Unit

END = 0
VOCAB = 9
PRODUCT = ScoreMap(0.0, tuple(float(name == "product") for name in FEATURES))
"""A score: the model's own probability that the whole unit is right."""


class ToyCloud:
    """Counts how often it reads."""

    def __init__(self, seed: int) -> None:
        self.reads = 0
        self._seed = seed

    def choice(self, answer: Ids) -> int:
        """After an answer's beginning."""
        return random.Random(f"cloud {self._seed} {answer}").randrange(VOCAB)

    def share(self, answer: Ids) -> float:
        """Of the last id."""
        right = answer[-1] == self.choice(answer[:-1])
        return 1.0 if right else random.Random(f"share {self._seed} {answer}").random()

    def read(self, answer: Ids) -> tuple[list[int], list[float]]:
        """See `curve_sources.Read`."""
        self.reads += 1
        ends = range(len(answer) + 1)
        return [self.choice(answer[:end]) for end in ends], [self.share(answer[:end]) for end in ends[1:]]


@dataclass
class ToyEdge:
    """Right in a share of its ids, and surer where it is."""

    cloud: ToyCloud
    limits: Limits
    skill: float

    def unit(self, answer: Ids) -> Unit:
        """One to sixteen ids."""
        lengths = random.Random(f"length {self.cloud._seed} {answer}")
        room = min(lengths.randint(1, UNIT_TOKENS), self.limits.tokens - len(answer))
        ids: Ids = ()
        probabilities: tuple[float, ...] = ()
        while len(ids) < room and END not in ids:
            draw = random.Random(f"edge {self.cloud._seed} {answer + ids}")
            right = self.cloud.choice(answer + ids)
            token = right if draw.random() < self.skill else draw.randrange(VOCAB)
            probabilities += (draw.uniform(0.7, 1.0) if token == right else draw.uniform(0.3, 0.9),)
            ids += (token,)
        margins = tuple(2 * p - 1 for p in probabilities)
        return Unit(ids, probabilities, margins, tuple(1 - p for p in probabilities), END in ids)


@dataclass
class Toy:
    """One prompt with both models behind it."""

    source: ToyCloud
    edge: ToyEdge
    cloud: Choices
    limits: Limits

    @property
    def text(self) -> Ids:
        """The cloud's own answer, id by id."""
        answer: Ids = ()
        while not self.limits.over(answer):
            answer += (self.source.choice(answer),)
        return answer


def _toy(seed: int, skill: float = 0.9, tokens: int = 40) -> Toy:
    limits = Limits(tokens, frozenset({END}))
    source = ToyCloud(seed)
    return Toy(source, ToyEdge(source, limits, skill), Choices(source.read), limits)


@pytest.fixture(scope="session")
def toy() -> Callable[..., Toy]:
    """Makes a toy of a seed, the edge's skill and the longest answer."""
    return _toy


@pytest.fixture(scope="session")
def product() -> ScoreMap:
    """See PRODUCT."""
    return PRODUCT

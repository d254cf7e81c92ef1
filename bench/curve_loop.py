"""One answer as the edge node runs it, without network, ledger or hand-over: draft, then show alone or ask. Pure.

Who drafts (the edge model, n-gram matches, nobody) and what is shown alone (by score, by chance, by the truth) are
parameters, so that every policy goes through the same loop and is counted alike. The answer is on policy: what follows
a unit that was shown follows it, right or wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..edge.calibration import ScoreMap
from ..edge.features import features
from ..edge.units import Unit

Ids = tuple[int, ...]


class Drafter(Protocol):
    """Who proposes what comes next."""

    def unit(self, answer: Ids) -> Unit:
        """The draft after these answer ids; of an edge model at least one id, of others maybe none."""
        ...


class Cloud(Protocol):
    """The model whose choices count, on one prompt."""

    def after(self, answer: Ids, draft: Ids) -> Ids:
        """Its greedy choice after `answer`, and after each id of `draft` behind that: len(draft) + 1 ids."""
        ...


Rank = Callable[[Ids, Unit], float]
"""How readily a unit that follows these answer ids is shown alone; the larger, the sooner."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an answer ends."""

    tokens: int
    """At most; an id that ends the answer is one of them."""
    end_ids: Collection[int]

    def over(self, answer: Ids) -> bool:
        """Whether the answer is complete."""
        return len(answer) >= self.tokens or (len(answer) > 0 and answer[-1] in self.end_ids)


@dataclass(frozen=True, slots=True)
class Run:
    """One answer and what it cost."""

    ids: Ids
    """An id that ended it included."""
    passes: int
    """Forward passes of the cloud: one per ask."""
    positions: int
    """Tokens that these passes read: the prompt once, what was shown alone, drafts, and the cloud's own ids."""
    units: int
    alone: int
    """Units that were shown without asking."""


def run(drafter: Drafter, cloud: Cloud, rank: Rank, threshold: float, prompt_tokens: int, limits: Limits) -> Run:
    """The answer when units whose rank is at least `threshold` are shown alone."""
    answer: Ids = ()
    passes = positions = units = alone = read = 0
    while not limits.over(answer):
        unit = drafter.unit(answer)
        units += 1
        if unit.ids and rank(answer, unit) >= threshold:
            alone += 1
            answer += unit.ids
            continue
        told = cloud.after(answer, unit.ids)
        passes += 1
        positions += prompt_tokens + len(answer) + len(unit.ids) - read
        stands = standing(unit.ids, told)
        answer += unit.ids[:stands]
        # The cloud's own id, which comes next, is read by the pass after this one.
        read = prompt_tokens + len(answer)
        if not limits.over(answer):
            answer += (told[stands],)
    return Run(answer, passes, positions, units, alone)


def standing(draft: Sequence[int], told: Sequence[int]) -> int:
    """How many ids of a draft are what the cloud chose at their places."""
    return next((i for i, token in enumerate(draft) if token != told[i]), len(draft))


def indifferent(answer: Ids, unit: Unit) -> float:
    """All units alike: none is shown alone at a threshold of inf, all are at −inf."""
    return 0.0


def by_score(scores: ScoreMap) -> Rank:
    """By the calibrated score."""
    return lambda answer, unit: scores.score(features(unit))


def by_chance(seed: str) -> Rank:
    """Uniform in [0, 1): one draw for each place of an answer at which a unit may begin."""
    return lambda answer, unit: random.Random(f"{seed} {len(answer)}").random()


def by_truth(cloud: Cloud, scores: ScoreMap) -> Rank:
    """An oracle: units that are the cloud's (2 to 3) before the others (0 to 1), by score among equals."""
    score = by_score(scores)

    def rank(answer: Ids, unit: Unit) -> float:
        right = cloud.after(answer, unit.ids)[:-1] == unit.ids
        return 2.0 * right + score(answer, unit)

    return rank

"""Labels for the edge's units: whether each is what the cloud would have said at its place.

The edge decodes on policy: a unit that is the cloud's stays, one that is not is replaced as a visit would do it, by
what stands of it and the cloud's own next id, and the answer goes on from there. So every unit is judged after a
beginning that the cloud agrees with, as it is in a mesh that keeps its bound; what follows a wrong unit that was shown
is no part of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..common.types import Sampling
from .drafting import Draft
from .features import features
from .units import Unit

_AHEAD = 4
"""Units that are drafted before the cloud is asked about all at once; those behind a wrong one were in vain."""


class Labeller(Protocol):
    """The cloud model, as far as labels need it."""

    async def choices(self, ids: Sequence[int], start: int, sampling: Sampling) -> Sequence[int]:
        """What the model takes at each place from `start` on (at least 1), given the ids before it.

        Answer index t is place start + t; the seed of `sampling` is set unless it is greedy. Raises TiermeshError.
        """
        ...


@dataclass(frozen=True, slots=True)
class Labelled:
    """A unit of the edge, judged."""

    features: tuple[float, ...]
    """See `features.FEATURES`."""
    tokens: int
    same: bool
    """Whether the cloud's choice is the unit's id at every place."""


@dataclass(frozen=True, slots=True)
class Task:
    """One answer to label."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    """Seeded unless greedy."""


Units = tuple[Labelled, ...]
"""Those of one prompt, in order."""


async def label_answer(
    draft: Draft, labeller: Labeller, task: Task, max_tokens: int, end_ids: Collection[int]
) -> Units:
    """All units of one answer. Raises TiermeshError."""
    prompt, start = list(task.prompt_ids), len(task.prompt_ids)
    answer: list[int] = []
    labelled: list[Labelled] = []
    while len(answer) < max_tokens and not (answer and answer[-1] in end_ids):
        ahead = await _draft_ahead(draft, prompt + answer, max_tokens - len(answer))
        drafted = [token for unit in ahead for token in unit.ids]
        choices = await labeller.choices(prompt + answer + drafted, start, task.sampling)
        for unit in ahead:
            told = choices[len(answer) : len(answer) + len(unit.ids)]
            stands = next((i for i, token in enumerate(unit.ids) if told[i] != token), len(unit.ids))
            labelled.append(Labelled(features(unit), len(unit.ids), stands == len(unit.ids)))
            answer += unit.ids[:stands]
            if stands < len(unit.ids):
                answer.append(told[stands])
                break
    return tuple(labelled)


async def _draft_ahead(draft: Draft, known: list[int], room: int) -> list[Unit]:
    """The next units, as if each would stand."""
    units: list[Unit] = []
    while room > 0 and len(units) < _AHEAD and not (units and units[-1].ends):
        units.append(await draft.unit(known, room))
        known = known + list(units[-1].ids)
        room -= len(units[-1].ids)
    return units


async def label_all(
    tasks: Sequence[Task], one: Callable[[Task], Awaitable[Units]], in_flight: int, advance: Callable[[], None]
) -> list[Units]:
    """The units of every task, `in_flight` at a time; `advance` is called after each. The first error ends all."""
    places = asyncio.Semaphore(in_flight)

    async def placed(task: Task) -> Units:
        async with places:
            units = await one(task)
        advance()
        return units

    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(placed(task)) for task in tasks]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [each.result() for each in running]

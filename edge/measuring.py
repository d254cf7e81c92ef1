"""One calibration of an edge directory: prompts in, labels from the cloud, thresholds out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import InvalidRequest
from ..common.text import Text
from ..common.types import Sampling
from .artifact import read_artifact
from .calibration import Calibration, SamplingClass
from .drafting import LocalDraft
from .fitting import LEAST_TOTAL, fit_class
from .labelling import Labeller, Task, Units, label_all, label_answer
from .model import EdgeModel
from .sampling import Picker
from .sequence import SequenceState
from .units import Borders, line_ends

IN_FLIGHT = 6
"""Answers at a time: the cloud labels some while the edge drafts others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What shall be measured."""

    classes: tuple[SamplingClass, ...]
    epsilon: float
    max_tokens: int
    """Of an answer."""


class Decoder:
    """The model of an edge directory with its text, for answers that nobody waits for."""

    def __init__(self, directory: Path, threads: int = 1) -> None:
        """Raises ModelDirError."""
        self.artifact = read_artifact(directory)
        self.text = Text(directory)
        self.end_ids = frozenset(self.artifact.eos_ids)
        self._borders = Borders(line_ends(self.text.token_bytes), self.end_ids)
        self._model = EdgeModel.load(self.artifact, threads)
        self._free: list[SequenceState] = []
        self._thread = ThreadPoolExecutor(1, "edge-model")

    def draft(self, task: Task) -> LocalDraft:
        """Drafts as the edge node does."""
        state = self._free.pop() if self._free else self._model.sequence()

        def release(used: SequenceState) -> None:
            used.reset()
            self._free.append(used)

        picker = Picker(task.sampling, len(task.prompt_ids), logprobs=False)
        return LocalDraft(state, picker, self._borders, self._thread, release)

    def close(self) -> None:
        """Ends the model's thread."""
        self._thread.shutdown(wait=True)


def in_hashed_order(prompts: Sequence[str]) -> list[str]:
    """Without repetitions, in an order that says nothing about them: the split into fit and test relies on that."""
    return sorted(set(prompts), key=lambda prompt: hashlib.sha256(prompt.encode()).digest())


def task_of(prompt: str, prompt_ids: Sequence[int], sampling: SamplingClass) -> Task:
    """The answer to label for one prompt: seed and temperature are drawn by the prompt's hash, uniformly."""
    if sampling.up_to == 0.0:
        return Task(tuple(prompt_ids), Sampling())
    rng = random.Random(hashlib.sha256(f"{sampling.name}|{prompt}".encode()).digest())
    temperature = sampling.up_to - rng.random() * (sampling.up_to - sampling.above)
    return Task(tuple(prompt_ids), Sampling(temperature=max(temperature, 1e-3), seed=rng.getrandbits(64)))


async def label_class(
    decoder: Decoder,
    labeller: Labeller,
    prompts: Sequence[str],
    sampling: SamplingClass,
    max_tokens: int,
    advance: Callable[[], None],
) -> list[Units]:
    """The units of every prompt that the artifact can hold together with its answer. Raises TiermeshError."""
    longest = decoder.artifact.architecture.max_length - max_tokens
    tasks = [task_of(prompt, decoder.text.encode_prompt(prompt), sampling) for prompt in prompts]

    async def one(task: Task) -> Units:
        if not 0 < len(task.prompt_ids) <= longest:
            return ()
        draft = decoder.draft(task)
        try:
            return await label_answer(draft, labeller, task, max_tokens, decoder.end_ids)
        finally:
            draft.close()

    return [units for units in await label_all(tasks, one, IN_FLIGHT, advance) if units]


async def calibrate(
    decoder: Decoder,
    labeller: Labeller,
    cloud_model: str,
    prompts: Sequence[str],
    plan: Plan,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Calibration, dict[str, list[Units]]]:
    """The calibration, and the labelled units by class. `advance` is called after each answer.

    Raises InvalidRequest when there are too few prompts, and what the labeller raises.
    """
    ordered = in_hashed_order(prompts)
    labelled: dict[str, list[Units]] = {}
    _require(len(ordered))
    digest = hashlib.sha256("\0".join(ordered).encode())
    for sampling in plan.classes:
        labelled[sampling.name] = await label_class(decoder, labeller, ordered, sampling, plan.max_tokens, advance)
        _require(len(labelled[sampling.name]))
    seed = int.from_bytes(digest.digest()[:8])
    calibration = Calibration(
        edge=decoder.artifact.digests,
        cloud_model=cloud_model,
        epsilon=plan.epsilon,
        prompts=len(ordered),
        prompts_sha256=digest.hexdigest(),
        max_tokens=plan.max_tokens,
        classes=tuple(fit_class(sampling, labelled[sampling.name], seed) for sampling in plan.classes),
    )
    return calibration, labelled


def _require(count: int) -> None:
    if count < LEAST_TOTAL:
        raise InvalidRequest(
            f"{count} different prompts fit the model, and {LEAST_TOTAL} are the least; about 2,000 find a bound of "
            f"2 % that holds, about 4,000 one of 1 %"
        )

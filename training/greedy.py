"""Greedy answers of the deployed edge artifact, and what the cloud model would have said at each of their places."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ..edge.artifact import read_artifact
from ..edge.model import EdgeModel
from ..edge.sequence import SequenceState


class EdgeReader:
    """One sequence on an edge directory, with the tokenizer beside it."""

    def __init__(self, directory: Path) -> None:
        artifact = read_artifact(directory)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.eos_ids = artifact.eos_ids
        self.sequence: SequenceState = EdgeModel.load(artifact).sequence()

    def answer(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Decode from a prompt until an end id, which is among the ids, or `max_tokens`."""
        self.sequence.reset()
        self.sequence.catch_up(prompt)
        ids: list[int] = []
        while True:
            ids.append(int(self.sequence.token[0]))
            if ids[-1] in self.eos_ids or len(ids) == max_tokens:
                return ids
            self.sequence.step(ids[-1])

    def logits(self, ids: Sequence[int], start: int) -> list[npt.NDArray[np.float32]]:
        """The edge's logits [V] for each place from `start` (at least 1) on, given the true ids before it."""
        self.sequence.reset()
        self.sequence.catch_up(ids[:start])
        rows = [self.sequence.logits[0, 0].copy()]
        for token in ids[start:-1]:
            self.sequence.step(token)
            rows.append(self.sequence.logits[0, 0].copy())
        return rows


@torch.no_grad()
def cloud_choices(cloud: LlamaForCausalLM, ids: Sequence[int], start: int) -> list[int]:
    """The cloud's greedy choice for each place from `start` on, given the ids before it, in one pass."""
    logits = cloud(torch.tensor([list(ids)]), use_cache=False).logits[0]
    chosen: list[int] = logits[start - 1 : -1].argmax(-1).tolist()
    return chosen


@torch.no_grad()
def cloud_answer(cloud: LlamaForCausalLM, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The cloud's own greedy answer, its end id included."""
    ids = torch.tensor([list(prompt)])
    told = cast(Any, cloud).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
    )
    answer: list[int] = told[0, len(prompt) :].tolist()
    return answer

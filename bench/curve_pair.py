"""The real pair behind `bench/curve.py`: the deployed edge artifact drafts, the float32 cloud chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from ..common.types import Sampling
from ..edge.labelling import Task
from ..edge.measuring import Decoder
from ..edge.units import Unit
from .curve_loop import Ids, Limits
from .curve_sources import Choices


class Pair:
    """Both models."""

    def __init__(self, edge: Path, cloud: Path) -> None:
        """Raises ModelDirError."""
        self.decoder = Decoder(edge)
        self._cloud = LlamaForCausalLM.from_pretrained(cloud, dtype=torch.float32)
        # Greedy drafts depend on the ids alone, so one sequence serves all prompts.
        self._draft = self.decoder.draft(Task((), Sampling()))
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """Ends the edge's thread."""
        self._draft.close()
        self.decoder.close()
        self._runner.close()

    def edge(self, prompt: Sequence[int], limits: Limits) -> EdgeDrafts:
        """The edge on one prompt."""
        return EdgeDrafts(self, prompt, limits)

    def cloud(self, prompt: Sequence[int]) -> Choices:
        """The cloud on one prompt."""
        return Choices(lambda answer: self._read(tuple(prompt), answer))

    def unit(self, known: Sequence[int], room: int) -> Unit:
        """The edge's unit after all known ids, drafted as the node does it."""
        return self._runner.run(self._draft.unit(known, room))

    @torch.no_grad()
    def _read(self, prompt: Ids, answer: Ids) -> tuple[list[int], list[float]]:
        ids = torch.tensor([prompt + answer])
        logits = self._cloud(ids, use_cache=False).logits[0, len(prompt) - 1 :]
        best = logits.max(-1)
        given = logits[:-1].gather(1, ids[0, len(prompt) :, None])[:, 0]
        chosen: list[int] = best.indices.tolist()
        shares: list[float] = (given - best.values[:-1]).exp().tolist()
        return chosen, shares


class EdgeDrafts:
    """The edge model's units after one prompt; a `Drafter`."""

    def __init__(self, pair: Pair, prompt: Sequence[int], limits: Limits) -> None:
        self._pair = pair
        self._prompt = list(prompt)
        self._limits = limits

    def unit(self, answer: Ids) -> Unit:
        """See `Drafter`."""
        return self._pair.unit([*self._prompt, *answer], self._limits.tokens - len(answer))

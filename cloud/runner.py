"""A plan in, choices out: builds the step's tensors, runs the model once, and lets the sampler choose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..common.errors import ConfigError
from .architecture import Architecture, read_architecture
from .batch import NULL_BLOCK, RESERVED_BLOCKS, TRASH_BLOCK, Rows, build_batch
from .checkpoint import Report
from .models import KvPool, Model
from .request import Choice, Job
from .sampler import Row, choose
from .scheduler import Work
from .weights import load_weights

BLOCK_SIZE = 16


class Runner(Protocol):
    """What the engine needs of a model; tests have one without tensors."""

    vocab_size: int
    max_context: int
    pool_blocks: int
    block_size: int

    def run(self, plan: Sequence[Work]) -> list[list[Choice]]:
        """One pass; for each work the choices behind its wanted positions."""
        ...

    def scrub(self, blocks: Iterable[int]) -> None:
        """Zeroes blocks that may hold non-finite values: masked positions are read too, and 0 · NaN is NaN."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and in what a model runs."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, device: str, dtype: str) -> Placement:
        """From the configuration's words; "auto" takes a GPU if there is one, float32 on a CPU and bfloat16 on a GPU.

        Raises ConfigError for a GPU that isn't there.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device cuda: this machine has no usable GPU; use --device cpu or auto")
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        kind = ("float32" if name == "cpu" else "bfloat16") if dtype == "auto" else dtype
        return cls(torch.device(name), getattr(torch, kind))


class ModelRunner:
    """The real one."""

    block_size = BLOCK_SIZE

    def __init__(self, arch: Architecture, model: Model, placement: Placement, pool_tokens: int) -> None:
        """`pool_tokens` tokens of KV, in whole blocks."""
        self.vocab_size = arch.vocab_size
        self.max_context = arch.max_context
        self.pool_blocks = -(-pool_tokens // BLOCK_SIZE)
        self._model = model
        self._placement = placement
        blocks = self.pool_blocks + RESERVED_BLOCKS
        self._pool = KvPool(arch, blocks, BLOCK_SIZE, placement.device, placement.dtype)

    @classmethod
    def load(
        cls, directory: Path, placement: Placement, pool_tokens: int, report: Report = lambda read, total: None
    ) -> ModelRunner:
        """Reads a Hugging Face directory; ModelDirError when it can't be served. `report` hears of every tensor."""
        arch = read_architecture(directory)
        weights = load_weights(directory, arch, placement.device, placement.dtype, report)
        return cls(arch, Model(arch, weights), placement, pool_tokens)

    def run(self, plan: Sequence[Work]) -> list[list[Choice]]:
        """One pass; for each work the choices behind its wanted positions."""
        rows = [
            Rows(
                work.sequence.slice(work.sequence.computed, work.sequence.computed + work.count),
                work.sequence.computed,
                work.sequence.blocks,
                work.wanted,
            )
            for work in plan
        ]
        batch = build_batch(rows, BLOCK_SIZE, self._placement.device, self._placement.dtype)
        logits = self._model.forward(batch, self._pool)
        wanted = [row for work in plan for row in _sampler_rows(work)]
        choices = iter(choose(logits, wanted) if wanted else ())
        return [[next(choices) for _ in range(work.wanted)] for work in plan]

    def scrub(self, blocks: Iterable[int]) -> None:
        """Zeroes the given blocks, and those that padding reads and writes."""
        spoiled = torch.tensor([NULL_BLOCK, TRASH_BLOCK, *blocks], device=self._placement.device)
        for layer in self._pool.layers:
            layer.index_fill_(0, spoiled, 0.0)


def _sampler_rows(work: Work) -> list[Row]:
    """How each wanted position of a work is to be chosen behind."""
    sequence = work.sequence
    end = sequence.computed + work.count
    score = sequence.job is Job.SCORE
    rows = []
    for position in range(end - work.wanted, end):
        follows = position + 1
        rows.append(
            Row(
                sequence.sampling,
                max(0, follows - sequence.prompt_length),
                sequence.slice(0, follows) if sequence.sampling.penalized else (),
                sequence.prompt_length,
                sequence.tokens[follows] if score and follows < len(sequence.tokens) else None,
                sequence.logprobs,
            )
        )
    return rows

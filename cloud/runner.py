"""A plan in, choices out: builds the step's tensors, runs the model once, and lets the sampler choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from ..common.errors import ConfigError
from .architecture import Architecture, read_architecture
from .batch import NULL_BLOCK, RESERVED_BLOCKS, TRASH_BLOCK, Rows, build_batch
from .checkpoint import Report
from .graphs import Graphs
from .models import KvPool, Model
from .own_thread import on_own_thread
from .request import Choice
from .sampler import choose
from .scheduler import Work
from .wanted import rows_of
from .weights import load_weights

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass gave."""

    choices: list[list[Choice]]
    """For each work, behind its wanted positions."""
    finite: list[bool]
    """For each work, whether its values were finite up to its last row; where not, its KV is worth nothing."""
    prepare_s: float = 0.0
    """Making the tensors."""
    forward_s: float = 0.0
    """The model; on a GPU, starting it."""
    sample_s: float = 0.0
    """Choosing; on a GPU, with the wait for the model."""


class Runner(Protocol):
    """What the engine needs of a model; tests have one without tensors."""

    vocab_size: int
    max_context: int
    pool_blocks: int
    block_size: int

    def run(self, plan: Sequence[Work]) -> Outcome:
        """One pass over all of a plan."""
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
        self._graphs: Graphs | None = None

    def record(self, sequences: int) -> None:
        """From now on passes that decode or verify up to so many sequences go by CUDA graphs, where these can be."""
        if self._placement.device.type == "cuda" and self._model.recordable:
            positions = min(self.max_context + 1, self.pool_blocks * BLOCK_SIZE)
            self._graphs = Graphs(
                self._model, self._pool, sequences, positions, self._placement.device, self._placement.dtype
            )

    @classmethod
    def load(
        cls, directory: Path, placement: Placement, pool_tokens: int, report: Report = lambda read, total: None
    ) -> ModelRunner:
        """Reads a Hugging Face directory; ModelDirError when it can't be served. `report` hears of every tensor."""
        arch = read_architecture(directory)

        def load() -> ModelRunner:
            weights = load_weights(directory, arch, placement.device, placement.dtype, report)
            return cls(arch, Model(arch, weights), placement, pool_tokens)

        return on_own_thread(load)

    def run(self, plan: Sequence[Work]) -> Outcome:
        """One pass over all of a plan."""
        began = perf_counter()
        rows = [
            Rows(
                work.sequence.slice(work.sequence.computed, work.sequence.computed + work.count),
                work.sequence.computed,
                work.sequence.blocks,
                max(1, work.wanted),
            )
            for work in plan
        ]
        forward = self._prepare(rows)
        prepared = perf_counter()
        logits = forward()
        forwarded = perf_counter()
        logits, spoilt = _wanted(logits, plan)
        wanted = [row for work in plan for row in rows_of(work)]
        choices = iter(choose(logits, wanted) if wanted else ())
        chosen = [[next(choices) for _ in range(work.wanted)] for work in plan]
        fine = [all(choice.finite for choice in given) and i not in spoilt for i, given in enumerate(chosen)]
        return Outcome(chosen, fine, prepared - began, forwarded - prepared, perf_counter() - forwarded)

    def _prepare(self, rows: Sequence[Rows]) -> Callable[[], Tensor]:
        """What gives the wanted logits of a pass."""
        if self._graphs is not None and (recorded := self._graphs.prepare(rows)) is not None:
            return recorded
        batch = build_batch(rows, BLOCK_SIZE, self._placement.device, self._placement.dtype)
        return partial(self._model.forward, batch, self._pool)

    def scrub(self, blocks: Iterable[int]) -> None:
        """Zeroes the given blocks, and those that padding reads and writes."""
        spoiled = torch.tensor([NULL_BLOCK, TRASH_BLOCK, *blocks], device=self._placement.device)
        for layer in self._pool.layers:
            layer.index_fill_(0, spoiled, 0.0)


def _wanted(logits: Tensor, plan: Sequence[Work]) -> tuple[Tensor, set[int]]:
    """Logits of the wanted rows, and which of the works that want none are not finite.

    Such a work has its last row among the logits as a witness: it saw all rows before it.
    """
    kept, witnesses, members, at = list[int](), list[int](), list[int](), 0
    for i, work in enumerate(plan):
        if work.wanted:
            kept += range(at, at + work.wanted)
        else:
            witnesses.append(at)
            members.append(i)
        at += max(1, work.wanted)
    if not witnesses:
        return logits, set()
    finite = torch.isfinite(logits[witnesses].sum(dim=-1)).tolist()
    return logits[kept], {i for i, good in zip(members, finite, strict=True) if not good}

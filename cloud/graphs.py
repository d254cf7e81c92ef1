"""Passes that only decode or verify, recorded as CUDA graphs: one launch, where Python makes ten a layer.

A graph replays kernels with the arguments that they were recorded with. So its rows come from memory that stays
(`fixed_batch.py`), a pass is padded to the next shape of which there is a graph, and where there is none, as for
prompts, it runs as before. The head is no part of it: what is wanted of a pass changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..common.telemetry import get_logger
from .batch import Rows
from .fixed_batch import FixedBatch, Shape, fitting, shapes
from .models import KvPool, Model


class Graphs:
    """The recorded passes of a model over its pool."""

    def __init__(
        self, model: Model, pool: KvPool, sequences: int, positions: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Records all shapes of up to `sequences` sequences, each of up to `positions` positions.

        That compiles the kernels too, so that no request waits for it.
        """
        began = perf_counter()
        self._model = model
        self._shapes = shapes(sequences)
        self._fixed = FixedBatch(self._shapes, positions, pool.block_size, device, dtype)
        memory = torch.cuda.graph_pool_handle()
        # The largest come first, and the others find room in what they left.
        self._recorded = {shape: self._record(shape, pool, memory) for shape in self._shapes}
        seconds = round(perf_counter() - began, 2)
        get_logger().info("passes recorded", shapes=len(self._shapes), sequences=sequences, seconds=seconds)

    def prepare(self, rows: Sequence[Rows]) -> Callable[[], Tensor] | None:
        """Takes a pass in; what it returns runs it and gives its wanted logits. None where no shape holds it.

        One pass at a time: the caller has seen the results of the last one.
        """
        shape = fitting(rows, self._shapes)
        return None if shape is None else partial(self._run, shape, self._fixed.fill(shape, rows))

    @torch.inference_mode()
    def _run(self, shape: Shape, wanted: Tensor | slice) -> Tensor:
        graph, hidden = self._recorded[shape]
        graph.replay()
        return self._model.logits(hidden[wanted])

    def _record(self, shape: Shape, pool: KvPool, memory: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # What runs meanwhile is a pass like any other, and must leave the null block zero.
        self._fixed.blank(shape)
        # Once outside: compiling and loading a kernel can't be recorded.
        self._model.hidden(self._fixed.batch(shape), pool)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            hidden = self._model.hidden(self._fixed.batch(shape), pool)
        return graph, hidden

"""The forward pass of the Llama family over paged KV, for all sequences of a step at once.

A step is a flat run of token rows. Rows of sequences with like query lengths form a group (see `batch.py`), padded to
a rectangle; everything but attention works on the flat rows, attention once per group. Nobody reads what padding rows
compute or write.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.dispatch import Ops, ops_for
from .architecture import Architecture, Rope
from .batch import Batch
from .linear import Linear, PackedLinear
from .weights import LayerWeights, Weights


class KvPool:
    """Keys and values of all blocks: one tensor per layer, [blocks, block size, 2, KV heads, head size].

    Key and value of a token are neighbours, so that one call writes both and one call gathers both.
    """

    def __init__(self, arch: Architecture, blocks: int, block_size: int, device: torch.device, dtype: torch.dtype):
        shape = (blocks, block_size, 2, arch.kv_heads, arch.head_dim)
        self.layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(arch.layers)]
        self.block_size = block_size

    @staticmethod
    def bytes_per_token(arch: Architecture, dtype: torch.dtype) -> int:
        """Memory that one token takes in all layers."""
        return 2 * arch.layers * arch.kv_heads * arch.head_dim * dtype.itemsize


class Model:
    """Weights and the forward pass. Not thread-safe: the engine's thread alone calls it."""

    def __init__(self, arch: Architecture, weights: Weights, ops: Ops | None = None) -> None:
        """Operations other than `ops_for` the weights' device are for tests."""
        self.arch = arch
        self._weights = weights
        self._ops = ops or ops_for(weights.embedding.device)
        # One position more than the context: a draft may end with an end-of-text id behind the last answer token.
        self._rotations = rotations(arch.rope, arch.head_dim, arch.max_context + 1).to(weights.embedding.device)
        self._query_width = arch.heads * arch.head_dim
        self.recordable = self._ops.recordable
        """Whether passes over one rectangle can be recorded as CUDA graphs."""

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: KvPool) -> Tensor:
        """Writes the KV of `batch` and returns the logits of its wanted rows, float32 [wanted, vocabulary]."""
        return self.logits(self.hidden(batch, pool))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Of what `hidden` gave, or of some of its rows; float32 [rows, vocabulary]."""
        return self._weights.head(hidden.to(torch.float32))

    @torch.inference_mode()
    def hidden(self, batch: Batch, pool: KvPool) -> Tensor:
        """Writes the KV of `batch` and returns its wanted rows behind the last norm, [wanted, hidden]."""
        layers = self._weights.layers
        hidden = F.embedding(batch.tokens, self._weights.embedding)
        turn = self._rotations[batch.positions, None]
        _, normed = self._norm(hidden, layers[0].input_norm)
        for i, (layer, window, kv) in enumerate(zip(layers, self.arch.windows, pool.layers, strict=True)):
            mixed = self._attention(normed, layer, window, kv, turn, batch)
            last = i + 1 == len(layers)
            if last and batch.wanted is not None:
                # Behind the last attention rows don't meet any more: those whose logits nobody wants end here.
                hidden, mixed = hidden.index_select(0, batch.wanted), mixed.index_select(0, batch.wanted)
            hidden, normed = self._add(hidden, layer.output, mixed, layer.mlp_norm)
            gated = self._ops.swiglu(layer.gate_up(normed))
            following = self._weights.norm if last else layers[i + 1].input_norm
            hidden, normed = self._add(hidden, layer.down, gated, following)
        return normed

    def _norm(self, rows: Tensor, weight: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._ops.rms_norm(rows, weight, self.arch.norm_epsilon, residual)

    def _add(self, hidden: Tensor, product: Linear, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """hidden + product(inputs), and the norm of that."""
        if isinstance(product, PackedLinear):
            return self._norm(product.add_to(hidden, inputs), weight)
        return self._norm(product(inputs), weight, hidden)

    def _attention(
        self, rows: Tensor, layer: LayerWeights, window: int | None, kv: Tensor, turn: Tensor, batch: Batch
    ) -> Tensor:
        """[rows, heads × head_dim]: every row's view of its sequence, its own key included."""
        qkv = layer.qkv(rows)
        self._ops.rope_kv_write(qkv, turn, batch.slots, kv, layer.head_norms, self.arch.norm_epsilon)
        return self._ops.attention(qkv[:, : self._query_width], kv, batch.groups, window)


def rotations(rope: Rope, head_dim: int, positions: int) -> Tensor:
    """exp(i · position · frequency), complex64 [positions, head_dim / 2]; scaling "llama3" as Llama 3.1 defines it."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        waves = rope.original_context * frequencies / (2 * math.pi)
        keep = ((waves - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)).clamp(0, 1)
        frequencies = frequencies * (keep + (1 - keep) / rope.factor)
    angles = torch.arange(positions).float()[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)

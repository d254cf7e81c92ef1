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

from .architecture import Architecture, Rope
from .batch import Batch, Group
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

    def __init__(self, arch: Architecture, weights: Weights) -> None:
        self.arch = arch
        self._weights = weights
        # One position more than the context: a draft may end with an end-of-text id behind the last answer token.
        self._rotations = rotations(arch.rope, arch.head_dim, arch.max_context + 1).to(weights.embedding.device)
        self._qkv_widths = (arch.heads * arch.head_dim, (arch.heads + arch.kv_heads) * arch.head_dim)

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: KvPool) -> Tensor:
        """Writes the KV of `batch` and returns the logits of its wanted rows, float32 [wanted, vocabulary]."""
        weights, arch = self._weights, self.arch
        hidden = F.embedding(batch.tokens, weights.embedding)
        turn = self._rotations[batch.positions, None]
        for layer, window, kv in zip(weights.layers, arch.windows, pool.layers, strict=True):
            mixed = self._attention(self._norm(hidden, layer.input_norm), layer, window, kv, turn, batch)
            hidden = layer.output.add_to(hidden, mixed)
            gate, up = layer.gate_up(self._norm(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = layer.down.add_to(hidden, F.silu(gate).mul_(up))
        last = hidden if batch.wanted is None else hidden.index_select(0, batch.wanted)
        return weights.head(self._norm(last, weights.norm).to(torch.float32))

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(rows, (rows.shape[-1],), weight, self.arch.norm_epsilon)

    def _attention(
        self, rows: Tensor, layer: LayerWeights, window: int | None, kv: Tensor, turn: Tensor, batch: Batch
    ) -> Tensor:
        """[rows, heads × head_dim]: every row's view of its sequence, its own key included."""
        arch = self.arch
        qkv = layer.qkv(rows)
        keys_from, values_from = self._qkv_widths
        turned = qkv[:, :values_from].view(-1, arch.heads + arch.kv_heads, arch.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            turned[:, : arch.heads] = self._norm(turned[:, : arch.heads], layer.query_norm)
            turned[:, arch.heads :] = self._norm(turned[:, arch.heads :], layer.key_norm)
        _rotate(turned, turn)
        kv.view(-1, qkv.shape[1] - keys_from).index_copy_(0, batch.slots, qkv[:, keys_from:])
        parts = [self._group(qkv[g.start : g.stop, :keys_from], kv, g, window) for g in batch.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _group(self, query: Tensor, kv: Tensor, group: Group, window: int | None) -> Tensor:
        """Attention of one rectangle of rows: the heads that share a KV head become rows of one query."""
        arch = self.arch
        share = arch.heads // arch.kv_heads
        size, length = group.sequences, group.query_length
        past = group.gather(kv)
        keys, values = past[:, :, 0].transpose(1, 2), past[:, :, 1].transpose(1, 2)
        query = query.view(size, length, arch.kv_heads, share, arch.head_dim).permute(0, 2, 1, 3, 4)
        query = query.reshape(size, arch.kv_heads, length * share, arch.head_dim)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=group.mask(window, share))
        mixed = mixed.view(size, arch.kv_heads, length, share, arch.head_dim).permute(0, 2, 1, 3, 4)
        return mixed.reshape(size * length, arch.heads * arch.head_dim)


def _rotate(heads: Tensor, turn: Tensor) -> None:
    """Rotates pairs of neighbours in `heads` [rows, heads, head_dim] by the unit complex numbers `turn`, in place."""
    if heads.dtype is torch.float32:
        torch.view_as_complex(heads.unflatten(-1, (-1, 2))).mul_(turn)
    else:
        wide = torch.view_as_complex(heads.to(torch.float32).unflatten(-1, (-1, 2)))
        heads.copy_(torch.view_as_real(wide * turn).flatten(-2))


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

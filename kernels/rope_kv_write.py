"""Rotary positions on query and key, and the key and value into their slots.

Neighbours x_2i, x_2i+1 of a head are rotated as one complex number by exp(i · position · frequency_i) (Su et al. 2021,
eq. 34; the weights are permuted at load so that a pair's halves are neighbours). With norms given, each head is first
put through RMSNorm, as Qwen3 has it. Then slot s of kv gets the row's key and value.

Shapes: qkv [rows, (heads + 2 · KV heads) · d]; turn complex64 [rows, 1, d / 2]; slots int64 [rows], block × block size
+ offset; kv [blocks, block size, 2, KV heads, d]; norms [d]. The query part of qkv is rotated in place, maybe the key
part too. Rows of padding must name a slot that no table holds: to leave them out would cost a copy of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rms_norm import normalize

Norms = tuple[Tensor, Tensor]
"""Weights of query and key norm."""


def rope_kv_write(
    qkv: Tensor, turn: Tensor, slots: Tensor, kv: Tensor, norms: Norms | None = None, epsilon: float = 0.0
) -> None:
    """By torch, in place."""
    kv_heads, head_dim = kv.shape[-2:]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    turned = qkv[:, : -kv_heads * head_dim].view(-1, heads + kv_heads, head_dim)
    if norms is not None:
        turned[:, :heads] = normalize(turned[:, :heads], norms[0], epsilon)
        turned[:, heads:] = normalize(turned[:, heads:], norms[1], epsilon)
    _rotate(turned, turn)
    kv.view(-1, 2 * kv_heads * head_dim).index_copy_(0, slots, qkv[:, heads * head_dim :])


def _rotate(heads: Tensor, turn: Tensor) -> None:
    """Rotates pairs of neighbours in `heads` [rows, heads, d] by the unit complex numbers `turn`, in place."""
    if heads.dtype is torch.float32:
        torch.view_as_complex(heads.unflatten(-1, (-1, 2))).mul_(turn)
    else:
        wide = torch.view_as_complex(heads.to(torch.float32).unflatten(-1, (-1, 2)))
        heads.copy_(torch.view_as_real(wide * turn).flatten(-2))

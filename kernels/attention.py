"""Attention of query rows over paged KV, for all groups of a step.

Row i of query head h sees the positions n ≤ p_i of its sequence, under a window w only those with n > p_i − w:

    out_i = Σ_n softmax_n(q_i · k_n / √d) v_n,   k and v of KV head ⌊h · KV heads / heads⌋

(Vaswani et al. 2017, §3.2; grouped heads: Ainslie et al. 2023; paged KV: Kwon et al. 2023, §4). A row that sees nothing
gives 0. Shapes: query [rows, heads × d], whose rows may lie apart; kv [blocks, block size, 2, KV heads, d], key and
value of a token being neighbours; out [rows, heads × d].

In float32 on a CPU a row's result is the same to the bit whatever rows and sequences are beside it, so that a text
does not hang on what was verified or batched together. Torch's kernel multiplies by MKL, which sums in other orders
below four query rows (so there are never fewer) and at some lengths of the context (`cloud/batch.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .paged import Group


def attention(query: Tensor, kv: Tensor, groups: Sequence[Group], window: int | None) -> Tensor:
    """By torch: gathers each group's KV into a rectangle. Slots that are hidden from a row must hold finite values."""
    parts = [attend(query[group.start : group.stop], kv, group, window) for group in groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend(query: Tensor, kv: Tensor, group: Group, window: int | None) -> Tensor:
    """One group: the heads that share a KV head become rows of one query."""
    kv_heads, head_dim = kv.shape[-2:]
    size, length, share = group.sequences, group.query_length, query.shape[1] // (kv_heads * head_dim)
    past = group.gather(kv)
    keys, values = past[:, :, 0].transpose(1, 2), past[:, :, 1].transpose(1, 2)
    query = group.rectangle(query.view(size, length, kv_heads, share, head_dim).permute(0, 2, 1, 3, 4))
    mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=group.mask(window, share))
    if length == 1:
        return mixed[:, :, :share].reshape(size, -1)
    mixed = mixed[:, :, : length * share].reshape(size, kv_heads, length, share, head_dim).permute(0, 2, 1, 3, 4)
    return mixed.reshape(size * length, -1)

"""Rotary positions and the KV write in Triton; see `rope_kv_write.py` for what they compute.

A program takes a tile of one row's query and key heads: it rotates them in registers, writes queries back in place, and
keys with their values straight into the slot. Keys are never written twice. Memory is read and written in whole heads;
what is real and what imaginary parts in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rope_kv_write import Norms

_TILE = 8


def rope_kv_write(
    qkv: Tensor,
    turn: Tensor,
    slots: Tensor,
    kv: Tensor,
    norms: Norms | None = None,
    epsilon: float = 0.0,
    tile: int = _TILE,
) -> None:
    """In place; `tile` heads per program, a power of two."""
    kv_heads, head_dim = kv.shape[-2:]
    rows, heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * kv_heads
    query_norm, key_norm = norms or (qkv, qkv)
    if rows:
        _kernel[(rows, triton.cdiv(heads + kv_heads, tile))](
            qkv,
            torch.view_as_real(turn),
            slots,
            kv,
            query_norm,
            key_norm,
            qkv.stride(0),
            epsilon,
            HEADS=heads,
            KV_HEADS=kv_heads,
            HEAD_DIM=head_dim,
            NORM=norms is not None,
            TILE=tile,
            WIDE=triton.next_power_of_2(head_dim),
        )


@triton.jit
def _kernel(
    qkv,
    turn,
    slots,
    kv,
    query_norm,
    key_norm,
    stride,
    epsilon,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NORM: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * TILE + tl.arange(0, TILE))[:, None]
    lane = tl.arange(0, WIDE)[None, :]
    inside = lane < HEAD_DIM
    queries = (head < HEADS) & inside
    keys = (head >= HEADS) & (head < HEADS + KV_HEADS) & inside
    at = qkv + row * stride + head * HEAD_DIM + lane
    heads = tl.load(at, mask=queries | keys, other=0.0).to(tl.float32)
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(heads * heads, axis=1) / HEAD_DIM + epsilon)
        weight = tl.where(head < HEADS, query_norm + lane, key_norm + lane)
        heads *= scale[:, None] * tl.load(weight, mask=queries | keys, other=0.0).to(tl.float32)
    turns = tl.load(turn + row * HEAD_DIM + lane, mask=inside, other=0.0)
    real, imaginary = tl.split(tl.reshape(heads, [TILE, WIDE // 2, 2]))
    cosine, sine = tl.split(tl.reshape(turns, [1, WIDE // 2, 2]))
    turned = tl.join(real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    turned = tl.reshape(turned, [TILE, WIDE]).to(qkv.dtype.element_ty)
    tl.store(at, turned, mask=queries)
    # 64 bits: a pool has more elements than 32 can count.
    cell = kv + tl.load(slots + row).to(tl.int64) * (2 * KV_HEADS * HEAD_DIM) + (head - HEADS) * HEAD_DIM + lane
    tl.store(cell, turned, mask=keys)
    value = tl.load(at + KV_HEADS * HEAD_DIM, mask=keys, other=0.0)
    tl.store(cell + KV_HEADS * HEAD_DIM, value, mask=keys)

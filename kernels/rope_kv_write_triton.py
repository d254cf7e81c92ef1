"""Rotary positions and the KV write in Triton; see `rope_kv_write.py` for what they compute.

A program takes a tile of one row's query and key heads: it rotates them in registers, writes queries back in place, and
keys with their values straight into the slot. Keys are never written twice.
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
            HALF=triton.next_power_of_2(head_dim // 2),
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
    HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * TILE + tl.arange(0, TILE))[:, None]
    pair = 2 * tl.arange(0, HALF)[None, :]
    inside = pair < HEAD_DIM
    queries = (head < HEADS) & inside
    keys = (head >= HEADS) & (head < HEADS + KV_HEADS) & inside
    at = qkv + row * stride + head * HEAD_DIM + pair
    real = tl.load(at, mask=queries | keys, other=0.0).to(tl.float32)
    imaginary = tl.load(at + 1, mask=queries | keys, other=0.0).to(tl.float32)
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(real * real + imaginary * imaginary, axis=1) / HEAD_DIM + epsilon)
        weight = tl.where(head < HEADS, query_norm + pair, key_norm + pair)
        real *= scale[:, None] * tl.load(weight, mask=queries | keys, other=0.0).to(tl.float32)
        imaginary *= scale[:, None] * tl.load(weight + 1, mask=queries | keys, other=0.0).to(tl.float32)
    cosine = tl.load(turn + row * HEAD_DIM + pair, mask=inside, other=0.0)
    sine = tl.load(turn + row * HEAD_DIM + pair + 1, mask=inside, other=0.0)
    turned_real = (real * cosine - imaginary * sine).to(qkv.dtype.element_ty)
    turned_imaginary = (real * sine + imaginary * cosine).to(qkv.dtype.element_ty)
    tl.store(at, turned_real, mask=queries)
    tl.store(at + 1, turned_imaginary, mask=queries)
    # 64 bits: a pool has more elements than 32 can count.
    cell = kv + tl.load(slots + row).to(tl.int64) * (2 * KV_HEADS * HEAD_DIM) + (head - HEADS) * HEAD_DIM + pair
    tl.store(cell, turned_real, mask=keys)
    tl.store(cell + 1, turned_imaginary, mask=keys)
    value = at + KV_HEADS * HEAD_DIM
    tl.store(cell + KV_HEADS * HEAD_DIM, tl.load(value, mask=keys, other=0.0), mask=keys)
    tl.store(cell + KV_HEADS * HEAD_DIM + 1, tl.load(value + 1, mask=keys, other=0.0), mask=keys)

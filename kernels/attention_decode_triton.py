"""Attention of few query rows per sequence in Triton; see `attention.py` for what it computes.

With one to eight rows (a decoding sequence, or a draft to be verified) a pass over KV is all the work, and a batch has
fewer sequences than a GPU has processors. So the context is split (Dao et al. 2023, "Flash-Decoding"): stage one gives
each part's result and the logarithm of its softmax sum, stage two weighs the parts by it. Both are deterministic, as
atomics would not be. The query rows that share a KV head form the rows of one product, padded to the 16 that `tl.dot`
needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import attend
from .paged import MAX_QUERY_LENGTH, Group

_TILE_BYTES = 16 << 10
"""Of the keys that a program reads at once: 64 positions of 128 elements of 16 bits. Twice that leaves room for three
programs on a processor, and unless their number just fills it, the last round costs up to 16 % (H200)."""

_STAGES = 2
"""Three, Triton's own choice, takes 4 to 8 % longer on an H200; so do four."""

_PROGRAMS = 640
"""Programs that fill a large GPU (132 processors, five each); more parts than that only cost."""


def attention(query: Tensor, kv: Tensor, groups: Sequence[Group], window: int | None) -> Tensor:
    """Attention of all groups; those with longer queries go by torch."""
    out = torch.empty(query.shape, device=query.device, dtype=query.dtype)
    for group in groups:
        rows = slice(group.start, group.stop)
        if group.query_length <= MAX_QUERY_LENGTH:
            attention_decode(query[rows], kv, group, window, out[rows])
        else:
            out[rows] = attend(query[rows], kv, group, window)
    return out


def attention_decode(
    query: Tensor, kv: Tensor, group: Group, window: int | None, out: Tensor, splits: int | None = None
) -> None:
    """Writes the attention of one group to `out` [rows, heads × d].

    The context is cut into `splits` parts, or into as many as pay.
    """
    _, block, _, kv_heads, head_dim = kv.shape
    share = query.shape[1] // (kv_heads * head_dim)
    rows = group.query_length * share
    wide = triton.next_power_of_2(max(16, head_dim))
    tile = min(128, max(16, _TILE_BYTES // (wide * kv.element_size())))
    if splits is None:
        splits = max(1, min(_PROGRAMS // (group.sequences * kv_heads), triton.cdiv(group.context, tile)))
    shape = (group.sequences, kv_heads, rows, splits, head_dim + 1)
    if group.room is None or group.room.shape != shape:
        group.room = torch.empty(shape, device=query.device, dtype=torch.float32)
    _split[(group.sequences, kv_heads, splits)](
        query,
        kv,
        group.tables,
        group.positions,
        group.room,
        query.stride(0),
        group.tables.stride(0),
        splits,
        head_dim**-0.5,
        LENGTH=group.query_length,
        SHARE=share,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK=block,
        WINDOW=window or 0,
        ROWS=triton.next_power_of_2(max(16, rows)),
        WIDE=wide,
        TILE=tile,
        num_stages=_STAGES,
    )
    _join[(group.sequences, kv_heads, rows)](
        group.room,
        out,
        out.stride(0),
        splits,
        LENGTH=group.query_length,
        SHARE=share,
        HEAD_DIM=head_dim,
        PARTS=triton.next_power_of_2(splits),
        WIDE=wide,
    )


@triton.jit
def _split(
    query,
    kv,
    tables,
    positions,
    parts,
    query_stride,
    table_stride,
    splits,
    scale,
    LENGTH: tl.constexpr,
    SHARE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One part of one sequence's context for one KV head: the normalized result, and log Σ exp of the scores."""
    sequence, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, lane = tl.arange(0, ROWS), tl.arange(0, WIDE)
    real, inside = row < LENGTH * SHARE, lane < HEAD_DIM
    at = (sequence * LENGTH + row // SHARE) * query_stride + (kv_head * SHARE + row % SHARE) * HEAD_DIM
    rows = tl.load(query + at[:, None] + lane[None, :], mask=real[:, None] & inside[None, :], other=0.0)
    position = tl.load(positions + sequence * LENGTH + row // SHARE, mask=real, other=-1).to(tl.int32)

    context = tl.load(positions + sequence * LENGTH + LENGTH - 1).to(tl.int32) + 1
    first = 0
    if WINDOW:
        first = tl.maximum(tl.load(positions + sequence * LENGTH).to(tl.int32) - WINDOW + 1, 0)
    length = tl.cdiv(tl.cdiv(context - first, splits), TILE) * TILE
    begin = first + split * length
    end = tl.minimum(begin + length, context)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDE], tl.float32)
    for start in range(begin, end, TILE):
        seen = start + tl.arange(0, TILE)
        live = seen < end
        block = tl.load(tables + sequence * table_stride + seen // BLOCK, mask=live, other=0).to(tl.int64)
        # 64 bits: a pool has more elements than 32 can count.
        cell = (block * BLOCK + seen % BLOCK) * (2 * KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM
        key = tl.load(kv + cell[None, :] + lane[:, None], mask=live[None, :] & inside[:, None], other=0.0)
        score = tl.dot(rows, key, input_precision="ieee") * scale
        visible = live[None, :] & (seen[None, :] <= position[:, None])
        if WINDOW:
            visible = visible & (seen[None, :] > position[:, None] - WINDOW)
        score = tl.where(visible, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        # A row that has seen nothing yet: −inf − −inf would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        share, shrink = tl.exp(score - base[:, None]), tl.exp(top - base)
        value = tl.load(
            kv + cell[:, None] + KV_HEADS * HEAD_DIM + lane[None, :], mask=live[:, None] & inside[None, :], other=0.0
        )
        mixed = mixed * shrink[:, None] + tl.dot(share.to(value.dtype), value, input_precision="ieee")
        total = total * shrink + tl.sum(share, axis=1)
        top = higher
    some = total > 0
    divisor = tl.where(some, total, 1.0)
    weight = tl.where(some, top + tl.log(divisor), float("-inf"))
    part = (((sequence * KV_HEADS + kv_head) * LENGTH * SHARE + row) * splits + split) * (HEAD_DIM + 1)
    tl.store(parts + part[:, None] + lane[None, :], mixed / divisor[:, None], mask=real[:, None] & inside[None, :])
    tl.store(parts + part + HEAD_DIM, weight, mask=real)


@triton.jit
def _join(
    parts,
    out,
    out_stride,
    splits,
    LENGTH: tl.constexpr,
    SHARE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """All parts of one row, weighed by their softmax sums."""
    sequence, kv_head, row = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    part, lane = tl.arange(0, PARTS), tl.arange(0, WIDE)
    known, inside = part < splits, lane < HEAD_DIM
    index = (sequence * tl.num_programs(1) + kv_head) * tl.num_programs(2) + row
    at = parts + (index * splits + part) * (HEAD_DIM + 1)
    weight = tl.load(at + HEAD_DIM, mask=known, other=float("-inf"))
    top = tl.max(weight, axis=0)
    weight = tl.exp(weight - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weight, axis=0)
    mixed = tl.load(at[:, None] + lane[None, :], mask=known[:, None] & inside[None, :], other=0.0)
    result = tl.sum(mixed * weight[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    place = out + (sequence * LENGTH + row // SHARE) * out_stride + (kv_head * SHARE + row % SHARE) * HEAD_DIM
    tl.store(place + lane, result.to(out.dtype.element_ty), mask=inside)

"""The tensors of one step, and how rows become rectangles for attention.

Sequences are grouped by query length, rounded up to a power of two, and padded to the longest of their group: decoding
sequences (one row each) never pay for a prompt in the same step, and a step has a handful of groups however many
sequences it has. Where attention reads a group as a rectangle, sequences of unlike contexts part ways too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..kernels.paged import Group

NULL_BLOCK = 0
"""Pads block tables; nothing is ever written to it, so what masked positions read is always zero."""

TRASH_BLOCK = 1
"""Where padding rows write; no table holds it. Were it the null block, one sequence's NaN would reach all others."""

RESERVED_BLOCKS = 2

_PADDING = 400
"""Positions of padding in a group's rectangle that cost a core as much as the calls of one more group.

For 16 contexts of 32 to 700, attention in eight layers took 77 ms as one group, 43 with 100 to 800 here, 56 as 16.
"""


_VECTOR, _PANEL, _TILE = 16, 192, 512
"""Positions that torch's attention kernel on a CPU exponentiates at once, that MKL sums in one go, and that the kernel
takes at a time. Between one panel and two MKL sums in other orders; else what lies behind a row's own adds zeros."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What one sequence runs in a step."""

    tokens: Sequence[int]
    """At least one."""
    start: int
    """Position of the first of them."""
    blocks: Sequence[int]
    """KV blocks of the sequence, enough for all positions up to the last of `tokens`."""
    wanted: int
    """Logits are wanted of this many of the last rows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's tensors; N rows, padding included."""

    tokens: Tensor
    """int64 [N]; 0 where a row is padding."""
    positions: Tensor
    """int64 [N]."""
    slots: Tensor
    """Where each row's key and value go: block × block size + offset; int64 [N]; in TRASH_BLOCK for padding."""
    groups: tuple[Group, ...]
    wanted: Tensor | None
    """Rows whose logits are wanted, in the order of the sequences given; None when these are all rows in order."""


def build_batch(rows: Sequence[Rows], block_size: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch of `rows`; `dtype` is that of the attention masks."""
    order = sorted(range(len(rows)), key=lambda i: bucket(len(rows[i].tokens)))
    tokens, positions, slots, groups = [], [], [], []
    first_row = [0] * len(rows)
    at = 0
    # On a GPU the kernels read each sequence as far as it goes.
    on_cpu = device.type == "cpu"
    for members in _grouped(order, rows, _PADDING if on_cpu else None):
        rectangle = Rectangle([rows[i] for i in members], block_size, on_cpu=on_cpu)
        for place, i in enumerate(members):
            first_row[i] = at + place * rectangle.length
        tokens.append(rectangle.tokens)
        positions.append(rectangle.positions)
        slots.append(rectangle.slots)
        groups.append(rectangle.group(at, device, dtype))
        at += rectangle.tokens.size
    wanted = wanted_rows(rows, first_row)
    return Batch(
        _tensor(np.concatenate([t.ravel() for t in tokens]), device),
        _tensor(np.concatenate([p.ravel() for p in positions]), device),
        _tensor(np.concatenate([s.ravel() for s in slots]), device),
        tuple(groups),
        None if wanted == list(range(at)) else _tensor(np.array(wanted, dtype=np.int64), device),
    )


def reach(context: int) -> int:
    """How far attention reads for so many positions, so that each row's sums are the same to the bit at any reach."""
    whole, rest = divmod(context, _TILE)
    if _PANEL < rest < 2 * _PANEL:
        rest = 2 * _PANEL
    return whole * _TILE + -(-rest // _VECTOR) * _VECTOR


def wanted_rows(rows: Sequence[Rows], first_row: Sequence[int]) -> list[int]:
    """Of a batch in which each member begins at such a row."""
    return [
        first + len(row.tokens) - row.wanted + j
        for row, first in zip(rows, first_row, strict=True)
        for j in range(row.wanted)
    ]


def bucket(length: int) -> int:
    """0 for one row, 1 for two, 2 for up to four, 3 for up to eight, and so on."""
    return (length - 1).bit_length()


def _grouped(order: list[int], rows: Sequence[Rows], padding: int | None) -> list[list[int]]:
    """Members of each group: of like lengths, and with at most so many positions of padding beside the longest."""
    groups: dict[int, list[int]] = {}
    for i in order:
        groups.setdefault(bucket(len(rows[i].tokens)), []).append(i)
    if padding is None:
        return list(groups.values())
    return [part for members in groups.values() for part in _parted(members, rows, padding)]


def _parted(members: list[int], rows: Sequence[Rows], padding: int) -> list[list[int]]:
    """One group as several, longest contexts first."""
    contexts = {i: rows[i].start + len(rows[i].tokens) for i in members}
    parts: list[list[int]] = []
    longest = spent = 0
    for i in sorted(members, key=lambda i: -contexts[i]):
        spent += longest - contexts[i]
        if not parts or spent > padding:
            parts.append([])
            longest, spent = contexts[i], 0
        parts[-1].append(i)
    return parts


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


class Rectangle:
    """Rows of one group in numpy, padded: tokens, positions and slots, each int64 [sequences, length], and tables."""

    def __init__(self, members: Sequence[Rows], block_size: int, *, on_cpu: bool = False, length: int = 0) -> None:
        """Of the longest member's length, or of `length` if that is more."""
        self._members = members
        self.length = max(length, *(len(m.tokens) for m in members))
        self.context = max(m.start + len(m.tokens) for m in members)
        self.reach = reach(self.context) if on_cpu else self.context
        # Lists become arrays at once: row by row this took 3 % of a step of sixteen sequences.
        self.tokens = _padded([m.tokens for m in members], self.length)
        self.tables = _padded([m.blocks for m in members], -(-self.reach // block_size))
        counts = np.array([len(m.tokens) for m in members], np.int64)
        offsets = np.arange(self.length)
        real = offsets < counts[:, None]
        self.positions = np.array([[m.start] for m in members], np.int64) + np.minimum(offsets, counts[:, None] - 1)
        blocks = np.take_along_axis(self.tables, self.positions // block_size, axis=1)
        self.slots = np.where(real, blocks * block_size + self.positions % block_size, TRASH_BLOCK * block_size)

    def group(self, at: int, device: torch.device, dtype: torch.dtype) -> Group:
        return Group(
            start=at,
            stop=at + self.tokens.size,
            sequences=len(self._members),
            query_length=self.length,
            positions=_tensor(self.positions, device),
            tables=_tensor(self.tables, device),
            run=_run(self.tables),
            context=self.context,
            even=self.length == 1 and bool((self.positions == self.context - 1).all()),
            dtype=dtype,
            reach=self.reach,
        )


def _padded(rows: list[Sequence[int]], length: int) -> np.ndarray:
    """int64 [rows, length]: each row's beginning, and zeros behind it."""
    return np.array([[*row[:length], *itertools.repeat(0, length - len(row))] for row in rows], np.int64)


def _run(tables: np.ndarray) -> slice | None:
    """The slice that a single sequence's blocks form, if they do."""
    if len(tables) == 1 and (np.diff(tables[0]) == 1).all():
        return slice(int(tables[0, 0]), int(tables[0, -1]) + 1)
    return None

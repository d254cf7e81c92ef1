"""Batches whose tensors stay where they are: of fixed shapes, filled anew for each pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.paged import MAX_QUERY_LENGTH, Group
from .batch import TRASH_BLOCK, Batch, Rectangle, Rows, bucket, wanted_rows

_MAX_ROWS = 256
"""Of a rectangle of several rows per sequence: up to about so many the weights' way to the processors takes longer than
the products (206 on an H200, in 16 bits), and padding costs nothing."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A rectangle of rows."""

    sequences: int
    length: int

    @property
    def rows(self) -> int:
        """All of them, padding included."""
        return self.sequences * self.length


def shapes(sequences: int) -> list[Shape]:
    """Those that passes of up to so many sequences are padded to, largest first.

    One, two, four or eight rows per sequence; sequences in steps of at most a half, and exactly the most.
    """
    counts = sorted({min(count, sequences) for count in _steps(2 * sequences)})
    lengths = [1 << bits for bits in range(MAX_QUERY_LENGTH.bit_length())]
    found = [Shape(count, length) for length in lengths for count in counts]
    return sorted((s for s in found if s.length == 1 or s.rows <= _MAX_ROWS), key=lambda s: -s.rows)


def fitting(rows: Sequence[Rows], among: Sequence[Shape]) -> Shape | None:
    """The smallest of `among`, which are as `shapes` gives them, that holds a pass."""
    length = 1 << bucket(max(len(row.tokens) for row in rows))
    fits = [shape for shape in among if shape.length == length and shape.sequences >= len(rows)]
    return fits[-1] if fits else None


def _steps(most: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16 and so on."""
    size = 1
    while size <= most:
        yield from (size, size + size // 2)
        size *= 2


class FixedBatch:
    """The memory of batches of all `shapes`: they share it, for one pass runs at a time.

    What pads a rectangle reads the null block and writes to the trash block, as in any batch.
    """

    def __init__(
        self, among: Sequence[Shape], positions: int, block_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """For sequences of up to so many positions; `dtype` is that of the attention masks."""
        rows, sequences = max(s.rows for s in among), max(s.sequences for s in among)
        self._width = -(-positions // block_size)
        self._block_size, self._dtype = block_size, dtype
        pinned = device.type == "cuda"
        self._host_rows = torch.zeros(4 * rows, dtype=torch.int64, pin_memory=pinned)
        self._host_tables = torch.zeros(sequences * self._width, dtype=torch.int64, pin_memory=pinned)
        self._rows = torch.zeros(4 * rows, dtype=torch.int64, device=device)
        self._tables = torch.zeros(sequences, self._width, dtype=torch.int64, device=device)

    def batch(self, shape: Shape) -> Batch:
        """The batch of a shape; it has what the latest `fill` of that shape gave it, and all its rows are wanted."""
        tokens, positions, slots = self._rows[: 3 * shape.rows].view(3, -1)
        group = Group(
            start=0,
            stop=shape.rows,
            sequences=shape.sequences,
            query_length=shape.length,
            positions=positions.view(shape.sequences, shape.length),
            tables=self._tables[: shape.sequences],
            run=None,
            # As far as any sequence may reach: launch parameters that hang on it must do for all.
            context=self._width * self._block_size,
            even=False,
            dtype=self._dtype,
        )
        return Batch(tokens, positions, slots, (group,), None)

    def blank(self, shape: Shape) -> None:
        """Puts in a pass that writes to the trash block alone."""
        self.fill(shape, [Rows([0], 0, [TRASH_BLOCK], 1)])

    def fill(self, shape: Shape, rows: Sequence[Rows]) -> Tensor | slice:
        """Puts a pass into the batch of `shape`, which must hold it. Returns which of the batch's rows are wanted."""
        rectangle = Rectangle(rows, self._block_size, length=shape.length)
        wanted = wanted_rows(rows, range(0, len(rows) * shape.length, shape.length))
        packed, width = self._host_rows.numpy(), rectangle.tables.shape[1]
        tokens, positions, slots = packed[: 3 * shape.rows].reshape(3, shape.sequences, shape.length)
        tokens[:], positions[:], slots[:] = 0, 0, TRASH_BLOCK * self._block_size
        for place, values in ((tokens, rectangle.tokens), (positions, rectangle.positions), (slots, rectangle.slots)):
            place[: len(rows)] = values
        packed[3 * shape.rows : 3 * shape.rows + len(wanted)] = wanted
        copied = 3 * shape.rows + len(wanted)
        self._rows[:copied].copy_(self._host_rows[:copied], non_blocking=True)
        tables = self._host_tables[: shape.sequences * width].view(shape.sequences, width)
        tables.numpy()[: len(rows)], tables.numpy()[len(rows) :] = rectangle.tables, 0
        self._tables[: shape.sequences, :width].copy_(tables, non_blocking=True)
        if wanted == list(range(len(wanted))):
            return slice(0, len(wanted))
        return self._rows[3 * shape.rows : copied]

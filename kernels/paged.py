"""Query rows over paged KV: which rows, and where the keys and values lie that they see."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_QUERY_LENGTH = 8
"""Rows per sequence up to which a GPU splits the context: decoding, and verifying a draft."""

_QUERY_ROWS = 4
"""MKL multiplies four rows and more in one way, and fewer in others."""


def padded(rows: int) -> int:
    """Query rows of a rectangle, with as many idle ones as it takes for each to have the same result in any number."""
    return -(-rows // _QUERY_ROWS) * _QUERY_ROWS


@dataclass(slots=True)
class Group:
    """A rectangle of query rows, `sequences` × `query_length`: flat rows `start` to `stop` of a step.

    Shared by all layers of the step, and so are the masks and the room that an implementation keeps in it.
    """

    start: int
    stop: int
    sequences: int
    query_length: int
    positions: Tensor
    """int64 [sequences, query_length], rising within a sequence; a row sees its sequence up to its own position."""
    tables: Tensor
    """Blocks of each sequence, padded with ones that hold finite values; int64 [sequences, blocks]."""
    run: slice | None
    """The blocks as one slice, where a sequence is alone in its group and its blocks are neighbours: no copy then."""
    context: int
    """Positions of the longest sequence."""
    even: bool
    """Whether every row sees all of the context, a window aside."""
    dtype: torch.dtype
    """Of the masks."""
    room: Tensor | None = None
    """What an implementation keeps from layer to layer, so as not to allocate it in each."""
    _queries: tuple[Tensor, Tensor] | None = None
    """A rectangle for query rows, and where in it they belong."""
    reach: int = 0
    """Positions of the rectangle where it has more than the context, all of them in `tables`."""
    _masks: dict[tuple[int | None, int], Tensor | None] = field(default_factory=dict)

    def gather(self, kv: Tensor) -> Tensor:
        """Keys and values of the group, [sequences, positions, 2, KV heads, head size], out of one layer's pool.

        Valid until the next call.
        """
        if self.run is not None:
            found = kv[self.run]
        else:
            if self.room is None:
                self.room = kv.new_empty(self.tables.numel(), *kv.shape[1:])
            found = torch.index_select(kv, 0, self.tables.view(-1), out=self.room)
        return found.view(self.sequences, -1, *kv.shape[2:])[:, : max(self.context, self.reach)]

    def rectangle(self, query: Tensor) -> Tensor:
        """Of a query [sequences, KV heads, query_length, share, head size] a copy whose query_length × share are one
        dimension, `padded`. Valid until the next call."""
        if self._queries is None:
            size, kv_heads, length, share, head_dim = query.shape
            room = query.new_zeros(size, kv_heads, padded(length * share), head_dim)
            self._queries = room, room[:, :, : length * share].view(query.shape)
        room, place = self._queries
        place.copy_(query)
        return room

    def mask(self, window: int | None, share: int) -> Tensor | None:
        """Additive mask: −inf on later positions and before a window; None where nothing is hidden.

        Shape [sequences, 1, `padded` (query_length × share), positions], or one row for all where query_length is 1.
        """
        key = (window, share)
        if key not in self._masks:
            self._masks[key] = self._build(window, share)
        return self._masks[key]

    def _build(self, window: int | None, share: int) -> Tensor | None:
        reach = max(self.context, self.reach)
        if self.even and (window is None or window >= self.context):
            if reach == self.context:
                return None
            tail = torch.zeros((1, 1, 1, reach), dtype=self.dtype, device=self.positions.device)
            tail[..., self.context :] = -torch.inf
            return tail
        keys = torch.arange(reach, device=self.positions.device)
        hidden = keys > self.positions[..., None]
        if window is not None:
            hidden |= keys <= self.positions[..., None] - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
        if self.query_length == 1:
            return mask[:, None]
        rows = self.query_length * share
        return F.pad(mask.repeat_interleave(share, dim=1), (0, 0, 0, padded(rows) - rows))[:, None]

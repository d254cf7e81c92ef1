"""Query rows over paged KV: which rows, and where the keys and values lie that they see."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


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
    _masks: dict[tuple[int | None, int], Tensor | None] = field(default_factory=dict)

    def gather(self, kv: Tensor) -> Tensor:
        """Keys and values of the group, [sequences, context, 2, KV heads, head size], out of one layer's pool.

        Valid until the next call.
        """
        if self.run is not None:
            found = kv[self.run]
        else:
            if self.room is None:
                self.room = kv.new_empty(self.tables.numel(), *kv.shape[1:])
            found = torch.index_select(kv, 0, self.tables.view(-1), out=self.room)
        return found.view(self.sequences, -1, *kv.shape[2:])[:, : self.context]

    def mask(self, window: int | None, share: int) -> Tensor | None:
        """Additive mask [sequences, 1, query_length × share, context]: −inf on later positions and before a window.

        None where nothing is hidden.
        """
        key = (window, share)
        if key not in self._masks:
            self._masks[key] = self._build(window, share)
        return self._masks[key]

    def _build(self, window: int | None, share: int) -> Tensor | None:
        if self.even and (window is None or window >= self.context):
            return None
        keys = torch.arange(self.context, device=self.positions.device)
        hidden = keys > self.positions[..., None]
        if window is not None:
            hidden |= keys <= self.positions[..., None] - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return mask[:, None].repeat_interleave(share, dim=2)

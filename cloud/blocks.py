"""Which KV blocks are free. Memory itself is the runner's; here are only numbers."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from .batch import RESERVED_BLOCKS


class BlockPool:
    """Hands out block numbers, the lowest first.

    Low numbers first keeps the blocks of a lone sequence neighbours, and neighbours are read without a copy.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        """`blocks` usable ones, besides those reserved for padding."""
        self.total = blocks
        self.block_size = block_size
        self._free = list(range(RESERVED_BLOCKS, RESERVED_BLOCKS + blocks))
        heapify(self._free)

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.total * self.block_size

    def missing(self, held: int, tokens: int) -> int:
        """Blocks that a sequence with `held` blocks lacks for `tokens` tokens."""
        return max(0, -(-tokens // self.block_size) - held)

    def grow(self, blocks: list[int], tokens: int) -> bool:
        """Extends `blocks` to hold `tokens` tokens; False, and nothing taken, when too few are free."""
        missing = self.missing(len(blocks), tokens)
        if missing > len(self._free):
            return False
        blocks.extend(heappop(self._free) for _ in range(missing))
        return True

    def release(self, blocks: list[int]) -> None:
        """Takes back all of `blocks` and empties the list."""
        for block in blocks:
            heappush(self._free, block)
        blocks.clear()

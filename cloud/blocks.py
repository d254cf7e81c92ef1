"""Which KV blocks are held, which are free, and which of the free ones still hold something worth finding.

Memory itself is the runner's; here are only numbers. A block is in one of four states:

    held     by one or more running sequences; by more than one only when it is full, and then nobody writes to it
    leased   free, but a sequence that paused means to come back for it
    kept     free, with a name under which new sequences find it
    empty    free, and nobody misses what it holds

Blocks are taken from the empty ones, then from the kept, then from the leased, in both the longest unused first. What
was emptied is noticed by whoever comes back: its name is dropped, and a lease knows how often that had happened before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from .batch import RESERVED_BLOCKS

_AT_ONCE = 16
"""A sixteenth of the pool is taken from the kept blocks at once, so that lowest first has something to choose from."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Blocks that a paused sequence would like to have again; a claim on nothing."""

    blocks: tuple[int, ...] = ()
    emptied: tuple[int, ...] = ()
    """How often each had been emptied by then."""


class BlockPool:
    """Hands out block numbers, of the empty ones the lowest first.

    Low numbers first keeps the blocks of a lone sequence neighbours, and neighbours are read without a copy.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        """`blocks` usable ones, besides those reserved for padding."""
        self.total = blocks
        self.block_size = block_size
        self._holders = [0] * (RESERVED_BLOCKS + blocks)
        self._emptied = [0] * (RESERVED_BLOCKS + blocks)
        self._empty = list(range(RESERVED_BLOCKS, RESERVED_BLOCKS + blocks))
        heapify(self._empty)
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._leased: OrderedDict[int, None] = OrderedDict()
        self._blocks: dict[bytes, int] = {}
        """By name."""
        self._names: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Blocks that no running sequence holds."""
        return len(self._empty) + len(self._kept) + len(self._leased)

    @property
    def named(self) -> int:
        """Blocks that can be found, held or free."""
        return len(self._names)

    def missing(self, held: int, tokens: int) -> int:
        """Blocks that a sequence with `held` blocks lacks for `tokens` tokens."""
        return max(0, -(-tokens // self.block_size) - held)

    def freed_by(self, blocks: Iterable[int]) -> int:
        """How many blocks would be free if the one who holds `blocks` gave them up."""
        return sum(self._holders[block] == 1 for block in blocks)

    def grow(self, blocks: list[int], tokens: int) -> bool:
        """Extends `blocks` to hold `tokens` tokens; False, and nothing taken, when too few are free."""
        missing = self.missing(len(blocks), tokens)
        if missing > self.free:
            return False
        blocks.extend(self._take() for _ in range(missing))
        return True

    def find(self, names: Ids[bytes]) -> list[int]:
        """Holds and returns the blocks of the longest beginning of `names` that is there."""
        found = []
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                break
            found.append(block)
        self._hold(found)
        return found

    def publish(self, block: int, name: bytes) -> None:
        """Makes a full block findable; of two blocks with one name the first stays."""
        if name not in self._blocks:
            self._blocks[name] = block
            self._names[block] = name

    def release(self, blocks: list[int]) -> None:
        """Takes back all of `blocks` and empties the list; the last one is the first to be taken again."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._let_go(block)
        blocks.clear()

    def lease(self, blocks: list[int]) -> Lease:
        """Takes back all of `blocks` and empties the list, for one who means to regain them."""
        lease = Lease(tuple(blocks), tuple(self._emptied[block] for block in blocks))
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._leased[block] = None
        blocks.clear()
        return lease

    def regain(self, lease: Lease) -> list[int]:
        """Holds and returns what is left of a lease, up to the first block that was emptied meanwhile."""
        left = []
        for block, emptied in zip(lease.blocks, lease.emptied, strict=True):
            if self._emptied[block] != emptied:
                break
            left.append(block)
        self._hold(left)
        return left

    def end(self, lease: Lease) -> None:
        """Nobody comes back for a lease."""
        for block, emptied in zip(reversed(lease.blocks), reversed(lease.emptied), strict=True):
            if self._emptied[block] == emptied and block in self._leased:
                del self._leased[block]
                self._let_go(block)

    def _hold(self, blocks: list[int]) -> None:
        for block in blocks:
            if self._holders[block] == 0:
                self._kept.pop(block, None)
                self._leased.pop(block, None)
            self._holders[block] += 1

    def _let_go(self, block: int) -> None:
        if block in self._names:
            self._kept[block] = None
        else:
            self._put_empty(block)

    def _put_empty(self, block: int) -> None:
        self._emptied[block] += 1
        heappush(self._empty, block)

    def _take(self) -> int:
        if not self._empty:
            self._reclaim()
        block = heappop(self._empty)
        self._holders[block] = 1
        return block

    def _reclaim(self) -> None:
        """Empties the longest unused of the kept blocks, or where there is none, of the leased."""
        source = self._kept or self._leased
        for _ in range(min(len(source), max(1, self.total // _AT_ONCE))):
            block, _ = source.popitem(last=False)
            if name := self._names.pop(block, None):
                del self._blocks[name]
            self._put_empty(block)

"""Paged attention: the Triton kernel, its reference, and the definition give the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch

from tiermesh.kernels.attention import attention
from tiermesh.kernels.paged import Group

TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float16: {"rtol": 4e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 3e-2, "atol": 2e-2},
}
NAN = float("nan")


@dataclass
class Case:
    """One group of sequences over a pool whose other blocks hold NaN."""

    contexts: tuple[int, ...]
    """Positions of each, its own rows included; 0: a row that sees nothing."""
    length: int = 1
    kv_heads: int = 2
    share: int = 1
    head_dim: int = 16
    block: int = 4
    window: int | None = None
    splits: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        width = max(1, -(-max(self.contexts) // self.block))
        numbers = list(range(1, 1 + len(self.contexts) * width))
        random.Random(9).shuffle(numbers)
        self.tables = torch.zeros(len(self.contexts), width, dtype=torch.int64)
        kv = torch.full((len(numbers) + 1, self.block, 2, self.kv_heads, self.head_dim), NAN)
        kv[0] = 0
        self.tails = []
        for i, context in enumerate(self.contexts):
            used = -(-context // self.block)
            self.tables[i, :used] = torch.tensor(numbers[i * width : i * width + used])
            for place in range(used * self.block):
                block, offset = int(self.tables[i, place // self.block]), place % self.block
                cell = torch.randn(2, self.kv_heads, self.head_dim, generator=generator)
                kv[block, offset] = cell if place < context else 0
                if place >= context:
                    self.tails.append((block, offset))
        self.kv = kv.to(self.device, self.dtype)
        rows, heads = len(self.contexts) * self.length, self.kv_heads * self.share
        # Rows lie apart, as they do beside key and value.
        wide = torch.randn(rows, heads * self.head_dim + 6, generator=generator)
        self.query = wide.to(self.device, self.dtype)[:, : heads * self.head_dim]
        ends = torch.tensor(self.contexts)[:, None] - self.length
        self.positions = ends + torch.arange(self.length)

    def group(self) -> Group:
        context = max(1, *self.contexts)
        size, positions = len(self.contexts), self.positions.to(self.device)
        tables = self.tables.to(self.device)
        return Group(0, size * self.length, size, self.length, positions, tables, None, context, False, self.dtype)

    def by_torch(self) -> torch.Tensor:
        return attention(self.query, self.kv, [self.group()], self.window)

    def by_triton(self) -> torch.Tensor:
        from tiermesh.kernels.attention_decode_triton import attention_decode

        # Unlike the reference, the kernel reads neither the null block nor what lies behind a sequence's end.
        spoiled = self.kv.clone()
        spoiled[0] = NAN
        for block, offset in self.tails:
            spoiled[block, offset] = NAN
        out = torch.full(self.query.shape, NAN, device=self.device, dtype=self.dtype)
        attention_decode(self.query, spoiled, self.group(), self.window, out, self.splits)
        return out

    def by_definition(self) -> torch.Tensor:
        out = torch.zeros(self.query.shape, dtype=torch.float64)
        for i in range(len(self.contexts)):
            for step in range(self.length):
                position = int(self.positions[i, step])
                first = max(0, position - self.window + 1) if self.window else 0
                seen = range(first, position + 1)
                cells = [self.kv[self.tables[i, n // self.block], n % self.block].double().cpu() for n in seen]
                for head in range(self.kv_heads * self.share if cells else 0):
                    place = slice(head * self.head_dim, (head + 1) * self.head_dim)
                    query = self.query[i * self.length + step, place].double().cpu()
                    keys, values = torch.stack([cell[:, head // self.share] for cell in cells]).unbind(1)
                    weights = (keys @ query / self.head_dim**0.5).softmax(0)
                    out[i * self.length + step, place] = weights @ values
        return out


CASES = {
    "one position": Case((1,)),
    "lengths 1, prime and whole blocks": Case((1, 7, 16, 13), kv_heads=1, share=2),
    "a sequence that sees nothing": Case((0, 5), kv_heads=1),
    "seven query heads per KV head, two rows": Case((9, 2), length=2, kv_heads=2, share=7, head_dim=10),
    "eight rows": Case((8, 37), length=8, kv_heads=1, share=2, head_dim=12),
    "three rows, five heads": Case((11, 3, 30), length=3, kv_heads=5, head_dim=6),
    "parts": Case((150, 3, 64, 65), kv_heads=1, splits=3, block=16),
    "more parts than positions": Case((70, 1), kv_heads=1, splits=5),
    "window": Case((90, 4, 20), length=2, kv_heads=1, share=2, window=7),
    "window over parts": Case((200, 90), kv_heads=1, window=100, splits=2, block=16),
    "window of one": Case((5,), window=1),
    "wide heads": Case((21,), kv_heads=1, head_dim=136),
}


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_definition(name: str) -> None:
    case = CASES[name]
    torch.testing.assert_close(case.by_torch().double(), case.by_definition(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_its_reference(device: torch.device, name: str, dtype: torch.dtype) -> None:
    plain = CASES[name]
    shape = (plain.contexts, plain.length, plain.kv_heads, plain.share, plain.head_dim, plain.block)
    case = Case(*shape, plain.window, plain.splits, dtype, device)
    torch.testing.assert_close(case.by_triton(), case.by_torch(), **TOLERANCE[dtype])


def test_groups_of_long_and_short_queries_in_one_call(device: torch.device) -> None:
    from tiermesh.kernels import attention_decode_triton

    long, short = Case((20,), length=12, device=device), Case((6, 5), device=device)
    query = torch.cat([long.query, short.query])
    kv = torch.cat([long.kv, short.kv])
    first, second = long.group(), short.group()
    second.start, second.stop = first.stop, first.stop + short.query.shape[0]
    second.tables = second.tables + long.kv.shape[0]
    got = attention_decode_triton.attention(query, kv, [first, second], None)
    torch.testing.assert_close(got, torch.cat([long.by_torch(), short.by_torch()]), **TOLERANCE[torch.float32])


def test_blocks_beyond_32_bits_are_found(device: torch.device) -> None:
    """A pool of more elements than 2³¹, of which all but one block stay untouched (and so take no memory)."""
    from tiermesh.kernels.attention_decode_triton import attention_decode
    from tiermesh.kernels.rope_kv_write_triton import rope_kv_write

    near = Case((3,), kv_heads=1, dtype=torch.float16, device=device)
    shape = near.kv.shape[1:]
    far = 2**31 // shape.numel() + 5
    pool = near.kv.new_empty(far + 1, *shape)
    assert pool.numel() > 2**31
    pool[far] = near.kv[near.tables[0, 0]]
    group = near.group()
    group.tables = torch.full_like(group.tables, far)
    out = torch.full_like(near.query, NAN)
    attention_decode(near.query, pool, group, None, out)
    torch.testing.assert_close(out, near.by_torch(), **TOLERANCE[torch.float16])

    qkv = torch.ones(1, 3 * 16, dtype=torch.float16, device=device)
    turn = torch.ones(1, 1, 8, dtype=torch.complex64, device=device)
    rope_kv_write(qkv, turn, torch.tensor([far * shape[0] + 3], device=device), pool)
    assert (pool[far, 3] == 1).all()

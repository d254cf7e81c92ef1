"""How rows become rectangles: each row is somewhere once, and little of a rectangle is padding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cloud.batch import RESERVED_BLOCKS, TRASH_BLOCK, Rows, build_batch, reach

CPU, BLOCK = torch.device("cpu"), 16


@st.composite
def steps(draw: st.DrawFn) -> list[Rows]:
    """Sequences of any length and context, their blocks apart."""
    rows, free = [], RESERVED_BLOCKS
    for _ in range(draw(st.integers(1, 12))):
        count = draw(st.sampled_from([1, 1, 1, 2, 3, 8, 40]))
        start = draw(st.integers(0, 900))
        blocks = range(free, free + -(-(start + count) // BLOCK))
        free = blocks.stop
        tokens = [len(rows) * 100 + i for i in range(count)]
        rows.append(Rows(tokens, start, blocks, draw(st.integers(0, count))))
    return rows


@given(steps())
def test_every_row_is_in_one_group_and_writes_its_own_slot(rows: list[Rows]) -> None:
    batch = build_batch(rows, BLOCK, CPU, torch.float32)
    assert [g.start for g in batch.groups] == [0, *(g.stop for g in batch.groups[:-1])]
    assert batch.groups[-1].stop == len(batch.tokens)
    written = {
        int(slot): (int(token), int(position))
        for token, position, slot in zip(batch.tokens, batch.positions, batch.slots, strict=True)
        if slot // BLOCK != TRASH_BLOCK
    }
    expected = {
        row.blocks[(row.start + i) // BLOCK] * BLOCK + (row.start + i) % BLOCK: (token, row.start + i)
        for row in rows
        for i, token in enumerate(row.tokens)
    }
    assert written == expected
    places = range(len(batch.tokens)) if batch.wanted is None else batch.wanted.tolist()
    ends = [token for row in rows for token in row.tokens[len(row.tokens) - row.wanted :]]
    assert [int(batch.tokens[place]) for place in places] == ends


@given(steps())
def test_a_group_reads_little_padding_and_knows_when_it_has_none(rows: list[Rows]) -> None:
    for group in build_batch(rows, BLOCK, CPU, torch.float32).groups:
        contexts = group.positions[:, -1] + 1
        assert group.context == contexts.max()
        assert group.context <= group.reach == reach(group.context)
        assert group.tables.shape[1] * BLOCK >= group.reach
        assert (group.context - contexts).sum() <= 400
        assert group.even == bool((group.positions == group.context - 1).all() and group.query_length == 1)

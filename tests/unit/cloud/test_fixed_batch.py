"""Passes in batches of fixed shapes, without a model: which shape a pass takes, and what is written where."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cloud.batch import NULL_BLOCK, RESERVED_BLOCKS, TRASH_BLOCK, Rows, build_batch
from tiermesh.cloud.fixed_batch import FixedBatch, fitting, shapes
from tiermesh.kernels.paged import MAX_QUERY_LENGTH

BLOCK = 4
POSITIONS = 40
CPU = torch.device("cpu")


@st.composite
def passes(draw: st.DrawFn, most: int = 9) -> list[Rows]:
    """Sequences that decode or verify, each with blocks of its own."""
    found = list[Rows]()
    for number in range(draw(st.integers(1, most))):
        count = draw(st.integers(1, MAX_QUERY_LENGTH))
        start = draw(st.integers(0, POSITIONS - count))
        first = RESERVED_BLOCKS + number * POSITIONS
        blocks = [first + i for i in range(-(-(start + count) // BLOCK))]
        tokens = draw(st.lists(st.integers(0, 99), min_size=count, max_size=count))
        found.append(Rows(tokens, start, blocks, draw(st.integers(1, count))))
    return found


@given(st.integers(1, 300), passes(most=40))
def test_a_shape_holds_its_pass_with_little_to_spare(slots: int, rows: list[Rows]) -> None:
    among = shapes(slots)
    longest = max(len(row.tokens) for row in rows)
    shape = fitting(rows, among)
    if shape is None:
        assert len(rows) > slots or len(rows) * longest > 256 / 3
        return
    assert len(rows) <= shape.sequences <= max(len(rows), min(slots, 1.5 * len(rows)))
    assert longest <= shape.length < 2 * longest
    assert all(s.sequences <= slots for s in among)


@given(st.integers(1, 64))
def test_decoding_always_has_a_shape_and_a_prompt_never(slots: int) -> None:
    among = shapes(slots)
    assert fitting([Rows([1], 3, [2], 1)] * slots, among) is not None
    assert fitting([Rows([1] * (MAX_QUERY_LENGTH + 1), 0, [2, 3, 4], 1)], among) is None


def test_what_stands_there_before_a_pass_comes_writes_to_trash_alone() -> None:
    fixed = FixedBatch(shapes(9), POSITIONS, BLOCK, CPU, torch.float32)
    for shape in shapes(9):
        fixed.blank(shape)
        batch = fixed.batch(shape)
        assert (batch.slots // BLOCK == TRASH_BLOCK).all()
        assert not batch.tokens.any()
        assert not batch.positions.any()


@given(st.lists(passes(), min_size=1, max_size=3))
def test_a_fixed_batch_says_what_a_batch_of_its_own_says(plans: list[list[Rows]]) -> None:
    """Whatever the passes before it left there."""
    among = shapes(9)
    fixed = FixedBatch(among, POSITIONS, BLOCK, CPU, torch.float32)
    for rows in plans:
        shape = fitting(rows, among)
        assert shape is not None
        wanted, batch = fixed.fill(shape, rows), fixed.batch(shape)
        (group,) = batch.groups
        positions, slots, tokens = (
            t.view(shape.sequences, shape.length) for t in (group.positions, batch.slots, batch.tokens)
        )
        for place, row in enumerate(rows):
            count = len(row.tokens)
            assert tokens[place, :count].tolist() == list(row.tokens)
            assert positions[place, :count].tolist() == list(range(row.start, row.start + count))
            assert group.tables[place, : len(row.blocks)].tolist() == list(row.blocks)
            alone = build_batch([row], BLOCK, CPU, torch.float32)
            assert slots[place, :count].tolist() == alone.slots[:count].tolist()
            assert (slots[place, count:] // BLOCK == TRASH_BLOCK).all()
            assert (positions[place, count:] == row.start + count - 1).all()
        assert (slots[len(rows) :] // BLOCK == TRASH_BLOCK).all()
        # Padding sequences see one position, of the block that is always zero.
        assert (positions[len(rows) :] == 0).all()
        assert (group.tables[len(rows) :, 0] == NULL_BLOCK).all()
        expected = [t for row in rows for t in row.tokens[len(row.tokens) - row.wanted :]]
        assert batch.tokens[wanted].tolist() == expected

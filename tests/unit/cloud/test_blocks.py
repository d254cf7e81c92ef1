"""The pool of KV blocks: what is found again, and in which order what nobody holds is given away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cloud.batch import RESERVED_BLOCKS
from tiermesh.cloud.blocks import BlockPool
from tiermesh.cloud.prefix import Chain, Salts

SALT = bytes(32)


def names(tokens: list[int], blocks: int, salt: bytes = SALT) -> list[bytes]:
    return Chain(salt, 4).names(tokens, blocks)


def filled(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks of a sequence whose full ones are published."""
    blocks: list[int] = []
    assert pool.grow(blocks, len(tokens))
    for block, name in zip(blocks, names(tokens, len(tokens) // 4), strict=False):
        pool.publish(block, name)
    return blocks


@given(
    tokens=st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8),
    other=st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8),
    salt=st.binary(min_size=32, max_size=32),
)
def test_a_name_stands_for_all_tokens_up_to_its_block_and_for_the_tenant(
    tokens: list[int], other: list[int], salt: bytes
) -> None:
    first, second = names(tokens, 2)
    assert [first, second] == [names(tokens, 1)[0], names(tokens, 2)[1]]
    theirs = names(other, 2)
    assert (theirs[0] == first) == (other[:4] == tokens[:4])
    assert (theirs[1] == second) == (other == tokens)
    assert (names(tokens, 1, salt)[0] == first) == (salt == SALT)


def test_a_tenants_salt_is_its_own_and_dies_with_the_process() -> None:
    salts, later = Salts(), Salts()
    assert salts.of("a") == salts.of("a") != salts.of("b")
    assert later.of("a") != salts.of("a")
    assert len(salts.of("")) == 32


def test_blocks_of_a_lone_sequence_are_neighbours_also_when_all_were_used_before() -> None:
    """But for the one that meets the pool's end."""
    pool, neighbours = BlockPool(64, 4), 0
    for turn in range(40):
        blocks = filled(pool, [turn * 100 + i for i in range(17)])
        neighbours += blocks == list(range(blocks[0], blocks[0] + 5))
        pool.release(blocks)
    assert neighbours >= 36


def test_empty_blocks_go_first_then_the_longest_unused_from_its_end_then_leases() -> None:
    pool = BlockPool(8, 4)
    paused = filled(pool, list(range(8)))
    old = filled(pool, list(range(100, 108)))
    new = filled(pool, list(range(200, 208)))
    lease = pool.lease(paused)
    pool.release(old)
    pool.release(new)
    assert pool.free == 8
    for taken, known in (
        (2, (2, 2, 2)),
        (1, (2, 1, 2)),
        (1, (2, 0, 2)),
        (2, (2, 0, 0)),
        (1, (1, 0, 0)),
        (1, (0, 0, 0)),
    ):
        assert pool.grow([], 4 * taken)
        found = [pool.find(names(list(range(at, at + 8)), 2)) for at in (0, 100, 200)]
        assert tuple(len(blocks) for blocks in found) == known
        left = pool.regain(lease)
        assert len(left) == known[0]
        for blocks in (found[0], left):
            lease = pool.lease(blocks)
        for blocks in found[1:]:
            pool.release(blocks)


def test_what_is_shared_is_free_when_the_last_lets_go() -> None:
    pool = BlockPool(4, 4)
    one = filled(pool, list(range(9)))
    two = pool.find(names(list(range(9)), 2))
    assert two == one[:2]
    assert (pool.free, pool.freed_by(one), pool.freed_by(two)) == (1, 1, 0)
    pool.release(one)
    assert (pool.free, pool.freed_by(two)) == (2, 2)
    pool.release(two)
    assert pool.free == 4


def test_of_two_that_computed_the_same_the_first_is_found() -> None:
    pool = BlockPool(8, 4)
    one, two = filled(pool, [1, 2, 3, 4]), filled(pool, [1, 2, 3, 4])
    assert pool.find(names([1, 2, 3, 4], 1)) == one
    pool.release(two)
    assert pool.named == 1


def test_a_lease_ends_with_what_it_held() -> None:
    pool = BlockPool(4, 4)
    lease = pool.lease(filled(pool, list(range(10))))
    pool.end(lease)
    fresh: list[int] = []
    assert pool.grow(fresh, 8)
    assert fresh == [RESERVED_BLOCKS + 2, RESERVED_BLOCKS + 3], "the last, which has no name, and the one never used"
    assert len(pool.regain(lease)) == 2, "what has a name is still as it was"


def test_too_few_free_blocks_take_nothing() -> None:
    pool = BlockPool(2, 4)
    blocks: list[int] = []
    assert not pool.grow(blocks, 9)
    assert (blocks, pool.free) == ([], 2)

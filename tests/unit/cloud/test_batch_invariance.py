"""What a row comes to does not hang on the rows, sequences and steps that it is computed with: equal to the bit."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.cloud.architecture import read_architecture
from tiermesh.cloud.batch import RESERVED_BLOCKS, Rows, build_batch
from tiermesh.cloud.models import KvPool, Model
from tiermesh.cloud.weights import load_weights
from tiermesh.training.random_model import write_random_model

CPU, BLOCK, LONGEST = torch.device("cpu"), 16, 720

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="the order in which MKL and oneDNN sum is what this is about",
)


class Place:
    """A model, and what one long text gives where its tokens come one by one, alone."""

    def __init__(self, directory: Path, heads: int, kv_heads: int, config: Mapping[str, Any]) -> None:
        write_random_model(directory, hidden=96, heads=heads, kv_heads=kv_heads, max_length=1024)
        written = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(written | config))
        self.arch = read_architecture(directory)
        self.model = Model(self.arch, load_weights(directory, self.arch, CPU, torch.float32))
        self.ids = torch.randint(self.arch.vocab_size, (LONGEST,), generator=torch.Generator().manual_seed(7)).tolist()
        self.blocks = list(range(RESERVED_BLOCKS, RESERVED_BLOCKS + -(-LONGEST // BLOCK)))
        pool = self.pool()
        self.alone = [self.run(pool, [Rows(self.ids[i : i + 1], i, self.blocks, 1)])[0] for i in range(LONGEST)]

    def pool(self) -> KvPool:
        return KvPool(self.arch, 8 * len(self.blocks), BLOCK, CPU, torch.float32)

    def run(self, pool: KvPool, rows: list[Rows]) -> torch.Tensor:
        return self.model.forward(build_batch(rows, BLOCK, CPU, torch.float32), pool)


SLIDING = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 48}


@pytest.fixture(scope="module", params=[(6, 2, {}), (2, 2, {}), (6, 1, SLIDING)], ids=["grouped", "single", "sliding"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("model"), *request.param)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_a_text_gives_the_same_however_it_is_cut_and_batched(place: Place, seed: int) -> None:
    """Chunks of any size, beside up to four other sequences in any state, blocks anywhere."""
    rng = random.Random(seed)
    pool = place.pool()
    each = len(place.blocks)
    others = list(range(RESERVED_BLOCKS + each, RESERVED_BLOCKS + 5 * each))
    rng.shuffle(others)
    blocks = [place.blocks, *(others[i * each :][:each] for i in range(4))]
    done = [0] * 5
    while done[0] < LONGEST:
        counts = {
            i: rng.choice([1, 1, 2, 3, 5, 16, 17, 64, 128]) for i in (0, *rng.sample(range(1, 5), rng.randrange(5)))
        }
        ends = {i: min(done[i] + count, LONGEST) for i, count in counts.items() if done[i] < LONGEST}
        rows = [Rows(place.ids[done[i] : end], done[i], blocks[i], end - done[i]) for i, end in ends.items()]
        given_back = place.run(pool, rows).split([row.wanted for row in rows])
        for (i, end), logits in zip(ends.items(), given_back, strict=True):
            assert torch.equal(logits, torch.stack(place.alone[done[i] : end])), (i, done[i], end)
            done[i] = end

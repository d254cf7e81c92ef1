"""A forward pass with Triton's kernels gives the logits of one with the references, padded and recorded ones too."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiermesh.cloud.architecture import Architecture, Rope
from tiermesh.cloud.batch import NULL_BLOCK, TRASH_BLOCK, Rows, build_batch
from tiermesh.cloud.fixed_batch import FixedBatch, fitting, shapes
from tiermesh.cloud.graphs import Graphs
from tiermesh.cloud.linear import linear
from tiermesh.cloud.models import KvPool, Model
from tiermesh.cloud.weights import LayerWeights, Weights
from tiermesh.kernels.dispatch import REFERENCE, ops_for, triton_ops

LLAMA = Architecture(
    family="llama",
    layers=2,
    hidden=42,
    heads=6,
    kv_heads=2,
    head_dim=14,
    intermediate=37,
    vocab_size=61,
    max_context=64,
    norm_epsilon=1e-5,
    rope=Rope(10_000.0),
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    query_key_norm=False,
    tied=False,
    windows=(None, None),
)
FAMILIES = {
    "llama": LLAMA,
    "sliding in one layer": replace(LLAMA, windows=(None, 5)),
    "norms of query and key": replace(LLAMA, query_key_norm=True, heads=7, kv_heads=1, head_dim=6),
}


def random_weights(arch: Architecture, device: torch.device) -> Weights:
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 1.5 / shape[-1] ** 0.5).to(device)

    query, key = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    layers = tuple(
        LayerWeights(
            input_norm=1 + drawn(arch.hidden),
            qkv=linear(drawn(query + 2 * key, arch.hidden)),
            head_norms=(1 + drawn(arch.head_dim), 1 + drawn(arch.head_dim)) if arch.query_key_norm else None,
            output=linear(drawn(arch.hidden, query)),
            mlp_norm=1 + drawn(arch.hidden),
            gate_up=linear(drawn(2 * arch.intermediate, arch.hidden)),
            down=linear(drawn(arch.hidden, arch.intermediate)),
        )
        for _ in range(arch.layers)
    )
    return Weights(drawn(arch.vocab_size, arch.hidden), layers, 1 + drawn(arch.hidden), linear(drawn(61, arch.hidden)))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_mixed_step(device: torch.device, family: str) -> None:
    arch = FAMILIES[family]
    weights = random_weights(arch, device)
    models = Model(arch, weights, REFERENCE), Model(arch, weights, triton_ops())
    pools = [KvPool(arch, 16, 4, device, torch.float32) for _ in models]
    prompt = torch.randint(61, (11,), generator=torch.Generator().manual_seed(1)).tolist()
    tables = [[5, 3, 4], [8, 9], [6]]
    # A prompt too long for the decode kernel; then beside each other a decoding sequence, a draft and a short prompt.
    steps = [
        [Rows(prompt[:9], 0, tables[0], 1), Rows(prompt[:2], 0, tables[1], 0)],
        [Rows(prompt[9:10], 9, tables[0], 1), Rows(prompt[2:5], 2, tables[1], 3), Rows(prompt[:3], 0, tables[2], 2)],
    ]
    for rows in steps:
        expected, got = (
            model.forward(build_batch(rows, 4, device, torch.float32), pool)
            for model, pool in zip(models, pools, strict=True)
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


PROMPTS = ([3, 9, 4, 1, 5, 5, 2, 6, 5, 3, 5, 8, 9], [7, 9, 3, 2], [3, 8, 4, 6, 2, 6])
TABLES = ([5, 3, 14, 12], [8, 9], [6, 7])
PLANS = (
    # Decoding; drafts of unlike lengths, of which not all is wanted; one alone, where others' tables still lie.
    ((0, 12, 13, 1), (1, 3, 4, 1), (2, 5, 6, 1)),
    ((0, 9, 13, 3), (2, 4, 6, 2)),
    ((1, 3, 4, 1),),
)
"""Per plan, of each sequence: which, from where to where, how many wanted."""


def plan(members: tuple[tuple[int, int, int, int], ...]) -> list[Rows]:
    return [Rows(PROMPTS[i][start:stop], start, TABLES[i], wanted) for i, start, stop, wanted in members]


def filled(model: Model, device: torch.device) -> KvPool:
    """A pool that holds all of the prompts."""
    pool = KvPool(model.arch, 16, 4, device, torch.float32)
    whole = [Rows(prompt, 0, table, 1) for prompt, table in zip(PROMPTS, TABLES, strict=True)]
    model.forward(build_batch(whole, 4, device, torch.float32), pool)
    return pool


def test_padding_to_a_fixed_shape_changes_nothing(device: torch.device) -> None:
    arch = FAMILIES["sliding in one layer"]
    weights = random_weights(arch, device)
    model, reference = Model(arch, weights, triton_ops()), Model(arch, weights, REFERENCE)
    pool, other = filled(reference, device), filled(reference, device)
    among = [shape for shape in shapes(4) if shape.sequences == 4]
    fixed = FixedBatch(among, arch.max_context + 1, 4, device, torch.float32)
    for rows in map(plan, PLANS):
        shape = fitting(rows, among)
        assert shape is not None
        wanted = fixed.fill(shape, rows)
        got = model.logits(model.hidden(fixed.batch(shape), pool)[wanted])
        expected = reference.forward(build_batch(rows, 4, device, torch.float32), other)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for mine, others in zip(pool.layers, other.layers, strict=True):
        kept = [block for block in range(len(mine)) if block != TRASH_BLOCK]
        torch.testing.assert_close(mine[kept], others[kept], rtol=1e-4, atol=1e-5)
        assert not mine[NULL_BLOCK].any()


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_passes(device: torch.device, family: str) -> None:
    arch = FAMILIES[family]
    model = Model(arch, random_weights(arch, device))
    pool, other = filled(model, device), filled(model, device)
    graphs = Graphs(model, pool, 5, arch.max_context + 1, device, torch.float32)
    assert not any(layer[NULL_BLOCK].any() for layer in pool.layers)
    for rows in map(plan, PLANS * 2):
        run = graphs.prepare(rows)
        assert run is not None
        expected = model.forward(build_batch(rows, 4, device, torch.float32), other)
        torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-5)
    assert graphs.prepare([Rows(PROMPTS[0], 0, TABLES[0], 1)]) is None


def test_a_cpu_takes_the_references_and_needs_no_triton() -> None:
    assert ops_for(torch.device("cpu")) is REFERENCE
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, tiermesh.cloud.models\n"
        "from tiermesh.kernels.dispatch import REFERENCE, ops_for\n"
        "assert ops_for(torch.device('cpu')) is REFERENCE"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True, cwd=Path(__file__).parent, timeout=120)


def test_a_gpu_takes_the_kernels(device: torch.device) -> None:
    assert ops_for(torch.device("cuda")) == triton_ops()

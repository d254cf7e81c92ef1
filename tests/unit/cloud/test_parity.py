"""Parity with transformers on random small models, drawn anew for each seed: logits of a pass, ids of the engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
import transformers

from tiermesh.cloud.architecture import read_architecture
from tiermesh.cloud.batch import RESERVED_BLOCKS, Rows, build_batch
from tiermesh.cloud.engine import Engine, EngineConfig
from tiermesh.cloud.models import KvPool, Model
from tiermesh.cloud.outputs import Ended, Output, Produced
from tiermesh.cloud.request import Job
from tiermesh.cloud.runner import BLOCK_SIZE, ModelRunner, Placement
from tiermesh.cloud.submission import Submission
from tiermesh.cloud.weights import load_weights
from tiermesh.common.text import Text
from tiermesh.common.types import Sampling
from tiermesh.training.random_model import write_random_model

CPU = torch.device("cpu")
CONTEXT, ANSWER, EOS = 768, 64, 1
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10_000.0},
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
]
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 48},
    "Qwen2": {},
    "Qwen3": {},
}


@dataclass(frozen=True)
class Drawn:
    """A random model: transformers' own, and its directory."""

    theirs: Any
    directory: Path
    vocab: int


def draw(family: str, seed: int, directory: Path) -> Drawn:
    """Heads, groups, sizes, tying and rope scaling by `seed`; the tokenizer is that of the random model."""
    rng = random.Random(f"{family} {seed}")
    kv_heads, share, head_dim = rng.choice([1, 2, 3]), (1, 2, 7)[seed % 3], rng.choice([6, 10, 16])
    vocab = rng.choice([263, 301, 331])
    assert vocab % 64
    write_random_model(directory, layers=1, hidden=8, heads=1, kv_heads=1, vocab=vocab)
    (directory / "model.safetensors").unlink()
    config = getattr(transformers, family + "Config")(
        vocab_size=vocab,
        hidden_size=kv_heads * share * -(-40 // (kv_heads * share)),
        intermediate_size=rng.choice([40, 77]),
        num_hidden_layers=2,
        num_attention_heads=kv_heads * share,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=bool(seed % 2),
        rope_parameters=ROPES[seed % 3],
        bos_token_id=0,
        eos_token_id=EOS,
        **FAMILIES[family],
    )
    torch.manual_seed(seed)
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Scales at which layers outweigh the token that came in, and greedy choices have clear winners.
            wide = 3.0 if "embed" in name or "lm_head" in name else 2.0
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * wide / parameter.shape[1] ** 0.5)
    model.save_pretrained(directory)
    return Drawn(model, directory, vocab)


def prompt(model: Drawn, length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, model.vocab) for _ in range(length)]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((got - expected).abs().max() / expected.abs().max())


@contextmanager
def engine(model: Drawn, pool_tokens: int, **config: int) -> Iterator[Engine]:
    """An engine whose outputs are delivered on its own thread."""

    class Directly:
        def call_soon_threadsafe(self, callback: Any, *arguments: Any) -> None:
            callback(*arguments)

    runner = ModelRunner.load(model.directory, Placement(CPU, torch.float32), pool_tokens)
    started = Engine(runner, Text(model.directory), EngineConfig(**config))
    started.start(Directly())  # type: ignore[arg-type]
    try:
        yield started
    finally:
        started.stop()


def answers(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers to prompts that run beside each other; no id ends one, so that all are of one length."""
    outputs: list[SimpleQueue[Output]] = [SimpleQueue() for _ in prompts]
    for ids, queue in zip(prompts, outputs, strict=True):
        wish = Submission(Job.GENERATE, tuple(ids), ANSWER, Sampling())
        engine.submit(wish, queue.put)
    return [_answer(queue) for queue in outputs]


def _answer(queue: SimpleQueue[Output]) -> list[int]:
    ids: list[int] = []
    while isinstance(output := queue.get(timeout=60), Produced):
        ids += output.ids
    assert isinstance(output, Ended), output
    return ids


def assert_greedy(model: Drawn, ids: list[int], answer: list[int]) -> None:
    """By induction: behind the prompt and each id given so far, transformers would choose the next one given."""
    with torch.inference_mode():
        chosen = model.theirs(torch.tensor([ids + answer])).logits[0, len(ids) - 1 :].argmax(-1).tolist()
    assert chosen[:-1] == answer


CASES = [(family, seed) for family in FAMILIES for seed in (0, 1, 2)]


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_logits(family: str, seed: int, tmp_path: Path) -> None:
    model = draw(family, seed, tmp_path)
    arch = read_architecture(tmp_path)
    ours = Model(arch, load_weights(tmp_path, arch, CPU, torch.float32))
    pool = KvPool(arch, RESERVED_BLOCKS + 128, BLOCK_SIZE, CPU, torch.float32)
    lengths = [1, random.Random(seed).randrange(2, 200), 700 - seed]
    prompts = [prompt(model, length, i) for i, length in enumerate(lengths)]
    shuffled = random.Random(seed).sample(range(RESERVED_BLOCKS, RESERVED_BLOCKS + 128), 128)
    rows = [Rows(ids, 0, [shuffled.pop() for _ in range(len(ids) // 16 + 1)], len(ids)) for ids in prompts]
    got = ours.forward(build_batch(rows, BLOCK_SIZE, CPU, torch.float32), pool).split(lengths)
    for ids, logits in zip(prompts, got, strict=True):
        with torch.inference_mode():
            assert relative(logits, model.theirs(torch.tensor([ids])).logits[0]) < 1e-4


@pytest.mark.parametrize(("family", "seed"), [(family, i % 3) for i, family in enumerate(FAMILIES)])
def test_greedy_ids_of_a_mixed_batch(family: str, seed: int, tmp_path: Path) -> None:
    """Chunked prompts beside decoding sequences in a pool so small that some are preempted; prefixes that are found."""
    model = draw(family, seed, tmp_path)
    prompts = [prompt(model, length, 10 + i) for i, length in enumerate((1, 150, 640, 40, 64))]
    with engine(model, 720, slots=5, step_tokens=48) as tight:
        given = answers(tight, prompts)
        assert sum(tight.load.preemptions.values()) > 0
    with engine(model, 6 * CONTEXT, slots=5, step_tokens=100) as roomy:
        assert answers(roomy, prompts) == given
        assert not sum(roomy.load.preemptions.values())
        assert answers(roomy, prompts) == given, "now from what was found computed"
        assert roomy.load.prompts["cached"] > 640 - 16
    assert {len(answer) for answer in given} == {ANSWER}
    for ids, answer in zip(prompts, given, strict=True):
        assert_greedy(model, ids, answer)

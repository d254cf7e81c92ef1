"""Logits equal those of transformers, for each family, however the tokens are cut into steps and batched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tiermesh.cloud.architecture import read_architecture
from tiermesh.cloud.batch import RESERVED_BLOCKS, Rows, build_batch
from tiermesh.cloud.models import KvPool, Model
from tiermesh.cloud.weights import load_weights
from tiermesh.common.errors import ModelDirError

CPU = torch.device("cpu")
VOCAB, BLOCK = 97, 16

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biased, odd heads": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_attention_heads": 3}),
    "llama long rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0}}),
    "mistral sliding": ("Mistral", {"sliding_window": 7, "num_attention_heads": 10, "num_key_value_heads": 5}),
    "mistral whole": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 sliding in one layer": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3 wide heads": ("Qwen3", {"head_dim": 24}),
}


def write(directory: Path, family: str, options: dict[str, Any], shard: str = "5GB") -> torch.nn.Module:
    """A small random model of transformers, saved to `directory`."""
    base = {
        "vocab_size": VOCAB,
        "hidden_size": 60,
        "intermediate_size": 70,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 10,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "eos_token_id": 1,
    }
    config = getattr(transformers, family + "Config")(**(base | options))
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(transformers, family + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name))
            else:
                parameter.mul_(4.0)
    model.save_pretrained(directory, max_shard_size=shard)  # type: ignore[operator]
    return model


def load(directory: Path) -> tuple[Model, KvPool]:
    arch = read_architecture(directory)
    pool = KvPool(arch, 40, BLOCK, CPU, torch.float32)
    return Model(arch, load_weights(directory, arch, CPU, torch.float32)), pool


def run(model: Model, pool: KvPool, rows: Sequence[Rows]) -> torch.Tensor:
    return model.forward(build_batch(rows, BLOCK, CPU, torch.float32), pool)


def reference(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    theirs = write(tmp_path, *CASES[case])
    model, pool = load(tmp_path)
    ids = torch.randint(VOCAB, (4, 90), generator=torch.Generator().manual_seed(1)).tolist()
    lengths, blocks = (90, 33, 1, 64), [[9, 3, 4, 20, 6, 7], [8, 2, 11], [12], [13, 14, 15, 16]]
    expected = [reference(theirs, ids[i][:n]) for i, n in enumerate(lengths)]
    # Three steps: chunks of unlike lengths beside each other, then what is left of each, then one token.
    done = [0, 0, 0, 0]
    for chunk in ((50, 20, 0, 63), (39, 12, 0, 0), (1, 1, 1, 1)):
        members = [i for i in range(4) if chunk[i]]
        rows = [Rows(ids[i][done[i] : done[i] + chunk[i]], done[i], blocks[i], chunk[i]) for i in members]
        got = run(model, pool, rows).split([chunk[i] for i in members])
        for i, logits in zip(members, got, strict=True):
            torch.testing.assert_close(logits, expected[i][done[i] : done[i] + chunk[i]], rtol=2e-4, atol=2e-4)
            done[i] += chunk[i]
    assert tuple(done) == lengths
    assert all(not layer[0].any() for layer in pool.layers), "the null block was written to"


def test_sharded_files_and_long_rope_positions(tmp_path: Path) -> None:
    theirs = write(tmp_path, "Llama", {"rope_parameters": LLAMA3_ROPE}, shard="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model, pool = load(tmp_path)
    ids = torch.randint(VOCAB, (250,), generator=torch.Generator().manual_seed(2)).tolist()
    logits = run(model, pool, [Rows(ids, 0, list(range(RESERVED_BLOCKS, RESERVED_BLOCKS + 16)), 3)])
    torch.testing.assert_close(logits, reference(theirs, ids)[-3:], rtol=2e-4, atol=2e-4)


def test_only_wanted_rows_come_back_in_the_order_asked(tmp_path: Path) -> None:
    theirs = write(tmp_path, "Llama", {})
    model, pool = load(tmp_path)
    long, short = list(range(20)), [5, 6]
    got = run(model, pool, [Rows(long, 0, [5, 6], 2), Rows(short, 0, [7], 1), Rows([9], 0, [8], 0)])
    expected = torch.cat([reference(theirs, long)[-2:], reference(theirs, short)[-1:]])
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        (
            {"rope_parameters": {"rope_type": "linear"}},
            "factor of the rope parameters must be a positive number, not None",
        ),
        ({"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": "1"}}, "low_freq_factor of the rope parameters"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope parameters of unlike layers"),
        ({"num_key_value_heads": 2.5}, "num_key_value_heads must be a positive whole number"),
        ({"head_dim": "wide"}, "head_dim must be a positive whole number"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, r"no safetensors file holds model\.layers\.2"),
        ({"num_hidden_layers": 1}, "9 tensors are not supported"),
        ({"intermediate_size": 64}, r"has shape \(70, 60\)"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, "Llama", {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelDirError, match=message):
        load(tmp_path)


def test_broken_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"config\.json"):
        load(tmp_path)
    write(tmp_path, "Llama", {})
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: t.to(torch.int8) for name, t in tensors.items()}, weights)
    with pytest.raises(ModelDirError, match="quantized weights"):
        load(tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelDirError, match="can't be read"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(ModelDirError, match=r"no \*\.safetensors"):
        load(tmp_path)

"""A tiny random Llama in a Hugging Face directory, for tests that need a real model and no skill.

The scales are chosen so that greedy decoding has clear winners (logits of standard deviation about 3: the gap between
the first two is below 0.01 at about one position in a hundred) and a temperature of 1 still gives varied text.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..edge.artifact import ExitPoint
from .exit_files import write_exit
from .tokenizer import BOS, EOS, PAD, save_tokenizer, train_tokenizer

_TEXT = (
    "dim the kitchen lights to forty percent, then open the blinds of the living room\n",
    "turn the heating in the bedroom down and switch off the fan in the workshop\n",
    "def read(path):\n    with open(path) as file:\n        return file.read()\n",
    "for name in names:\n    print(name, len(name))\n",
    '[{"device":"light.kitchen","set":{"brightness":40}}]\n',
)


def write_random_model(
    out: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 320,
    tie: bool = True,
    seed: int = 0,
    max_length: int = 512,
) -> Path:
    """Write config.json, model.safetensors (float32) and the tokenizer's files into `out`, and return `out`.

    The defaults also suit the edge export (heads of 16). `vocab` is at least 259 (specials and bytes); ids past what
    the little training text yields decode to nothing.
    Two models with equal `vocab` share a tokenizer, whatever their seeds. Raises ValueError when shapes don't divide.
    """
    if hidden % heads or heads % kv_heads or (hidden // heads) % 2:
        raise ValueError(f"hidden {hidden}, heads {heads}, kv_heads {kv_heads} don't divide into even heads")
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(train_tokenizer(_TEXT, vocab), out, max_length)
    tensors = _random_tensors(np.random.default_rng(seed), layers, hidden, heads, kv_heads, vocab, tie)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": max_length,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tie,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": "float32",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return out


def write_random_exit(
    directory: Path,
    layers: int,
    curve: Sequence[ExitPoint],
    *,
    rank: int = 32,
    shortlist: int | None = None,
    seed: int = 0,
) -> Path:
    """Add an inner exit with a random adapter to a random model; it guesses the last `shortlist` ids (default: all)."""
    rng = np.random.default_rng(seed)
    config = json.loads((directory / "config.json").read_text())
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    ones = np.ones(hidden, np.float32)
    tensors = {
        "norm.weight": ones,
        "down.weight": rng.standard_normal((rank, hidden), np.float32) / np.sqrt(np.float32(hidden)),
        "up.weight": rng.standard_normal((hidden, rank), np.float32) / np.sqrt(np.float32(rank)),
        "final.weight": ones,
        "other.weight": 0 * ones,
        "shortlist": np.arange(vocab - (shortlist or vocab), vocab),
    }
    write_exit(directory, tensors, layers, curve)
    return directory


def _random_tensors(
    rng: np.random.Generator, layers: int, hidden: int, heads: int, kv_heads: int, vocab: int, tie: bool
) -> dict[str, np.ndarray]:
    """Weights by their Hugging Face names; projections have gain 2, so that layers outweigh the token that came in."""

    def matrix(rows: int, columns: int, gain: float = 2.0) -> np.ndarray:
        return np.asarray(rng.standard_normal((rows, columns)) * gain / np.sqrt(columns), np.float32)

    head_dim, ones = hidden // heads, np.ones(hidden, np.float32)
    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden, 3.0), "model.norm.weight": ones}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": ones,
            prefix + "post_attention_layernorm.weight": ones,
            prefix + "self_attn.q_proj.weight": matrix(heads * head_dim, hidden),
            prefix + "self_attn.k_proj.weight": matrix(kv_heads * head_dim, hidden),
            prefix + "self_attn.v_proj.weight": matrix(kv_heads * head_dim, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, heads * head_dim),
            prefix + "mlp.gate_proj.weight": matrix(2 * hidden, hidden),
            prefix + "mlp.up_proj.weight": matrix(2 * hidden, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, 2 * hidden),
        }
    if not tie:
        tensors["lm_head.weight"] = matrix(vocab, hidden, 3.0)
    return tensors

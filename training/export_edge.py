"""Turn a Llama directory of Hugging Face into an edge directory: ONNX graphs, the tokenizer, and edge.json.

`python -P -m tiermesh.training.export_edge HF_DIR OUT [--bits 4|8]`. A directory that holds an inner exit
(`inner_exit.json`, see inner_exit.py) becomes two graphs, any other one graph; `decoder_graph.py` builds them.
docs/decisions/ says why the graphs are built here.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..common.errors import ModelDirError, TiermeshError
from ..common.model_dir import digests, read_eos_ids, read_json
from ..edge.artifact import FORMAT, Architecture, graph_names
from .decoder_graph import DecoderGraph, Weights
from .exit_files import FACTS
from .onnx_graph import BLOCK

_EXTERNAL_BYTES = 1_500_000_000
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def export_edge(hf_dir: Path, out: Path, bits: int = 8) -> None:
    """Write the edge directory `out` from `hf_dir`, with weights of `bits` (4 or 8) and embeddings of 8.

    None of its units is trusted until it is calibrated. Raises ValueError for other `bits`, ModelDirError when the
    directory is broken or its architecture is not Llama's.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits is 4 or 8, got {bits}")
    architecture, epsilon = _read_architecture(hf_dir)
    tensors = _read_tensors(hf_dir)
    inner = read_json(hf_dir / FACTS) if (hf_dir / FACTS).exists() else None
    weights = Weights(architecture, epsilon, tensors, _rotary_tables(hf_dir, architecture.max_length), bits)
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("*.onnx*"):
        stale.unlink()
    for name, model in zip(graph_names(split=inner is not None), _graphs(weights, inner), strict=True):
        _save(model, out / name)
    for name in _TOKENIZER_FILES:
        if (hf_dir / name).exists():
            shutil.copyfile(hf_dir / name, out / name)
    facts = {
        "format": FORMAT,
        "architecture": asdict(architecture),
        "bits": bits,
        "eos_ids": list(read_eos_ids(hf_dir)),
        "digests": asdict(digests(out)),
        **({"inner_exit": inner} if inner else {}),
    }
    (out / "edge.json").write_text(json.dumps(facts, indent=2) + "\n")


def _graphs(weights: Weights, inner: Mapping[str, Any] | None) -> Iterator[onnx.ModelProto]:
    """The graphs in the order of `graph_names`, one at a time in memory."""
    if inner is None:
        yield DecoderGraph(weights).whole()
        return
    yield DecoderGraph(weights).shallow(inner["layers"])
    yield DecoderGraph(weights).deep(inner["layers"])


def _read_architecture(hf_dir: Path) -> tuple[Architecture, float]:
    """The shape and the norms' epsilon of a Llama config; refuses what the graph doesn't do, by name."""
    config = read_json(hf_dir / "config.json")
    if config.get("model_type") != "llama" or config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise ModelDirError(f"{hf_dir}: only the Llama architecture with SiLU and no MLP bias can be exported")
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        rope = config.get("rope_parameters") or {}
        architecture = Architecture(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab=config["vocab_size"],
            max_length=config["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        )
        widths = [int(width) for width in (hidden, config["intermediate_size"], heads * architecture.head_dim)]
    except (KeyError, TypeError) as exc:
        raise ModelDirError(f"{hf_dir}/config.json: a size is missing or no number ({exc})") from exc
    if any(width % BLOCK for width in widths):
        raise ModelDirError(f"{hf_dir}: widths {widths} are not all multiples of {BLOCK}, the smallest block")
    if architecture.head_dim % 16:
        raise ModelDirError(
            f"{hf_dir}: heads of {architecture.head_dim}; the runtime's attention wants multiples of 16"
        )
    return architecture, float(config.get("rms_norm_eps", 1e-6))


def _read_tensors(hf_dir: Path) -> dict[str, torch.Tensor]:
    paths = sorted(hf_dir.glob("*.safetensors"))
    if not paths:
        raise ModelDirError(f"{hf_dir} holds no *.safetensors")
    return {name: tensor for path in paths for name, tensor in load_file(path).items()}


def _rotary_tables(hf_dir: Path, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [length, head_dim/2], scaled as the config says (default, linear, llama3, yarn)."""
    rotary = LlamaRotaryEmbedding(AutoConfig.from_pretrained(hf_dir))
    if rotary.rope_type in ("dynamic", "longrope"):
        raise ModelDirError(f"{hf_dir}: rope type {rotary.rope_type} depends on the length and can't be a fixed table")
    angles = np.outer(np.arange(length), rotary.inv_freq.double().numpy())
    scale = rotary.attention_scaling
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph; its weights beside it only when protobuf's 2 GB limit is near."""
    external = sum(len(initializer.raw_data) for initializer in model.graph.initializer) > _EXTERNAL_BYTES
    onnx.save(model, path, save_as_external_data=external, location=path.name + ".data" if external else None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a Llama directory as an edge directory.")
    parser.add_argument("hf_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8)
    options = parser.parse_args()
    try:
        export_edge(options.hf_dir, options.out, options.bits)
    except TiermeshError as error:
        sys.exit(f"export: {error.message}")


if __name__ == "__main__":
    main()

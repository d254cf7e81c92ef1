"""Turn a Llama directory of Hugging Face into an edge directory: one ONNX graph, the tokenizer, and edge.json.

`python -P -m tiermesh.training.export_edge HF_DIR OUT [--bits 4|8]`. The graph runs any number of new tokens with the
KV in buffers that the caller owns, and reads off the last position what the edge decides by: the greedy token and three
features of its distribution. docs/decisions/ says why the graph is built here.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..common.errors import ModelDirError, TiermeshError
from ..common.model_dir import digests, read_eos_ids, read_json
from ..edge.artifact import FORMAT, Architecture
from .onnx_graph import BLOCK, GraphBuilder

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
    out.mkdir(parents=True, exist_ok=True)
    cache = _rotary_tables(hf_dir, architecture.max_length)
    _save(_Decoder(architecture, epsilon, tensors, cache, bits).model(), out / "edge.onnx")
    for name in _TOKENIZER_FILES:
        if (hf_dir / name).exists():
            shutil.copyfile(hf_dir / name, out / name)
    facts = {
        "format": FORMAT,
        "architecture": asdict(architecture),
        "bits": bits,
        "eos_ids": list(read_eos_ids(hf_dir)),
        "digests": asdict(digests(out)),
    }
    (out / "edge.json").write_text(json.dumps(facts, indent=2) + "\n")


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


class _Decoder:
    """Builds the graph of one model: embedding, layers, head on the last position, decision features."""

    def __init__(
        self,
        architecture: Architecture,
        epsilon: float,
        tensors: dict[str, torch.Tensor],
        cache: tuple[np.ndarray, np.ndarray],
        bits: int,
    ) -> None:
        self.shape, self.epsilon, self.tensors = architecture, epsilon, tensors
        self.graph = GraphBuilder(bits)
        self.rotary = [self.graph.constant("cos", cache[0]), self.graph.constant("sin", cache[1])]

    def model(self) -> onnx.ModelProto:
        """The checked model with the inputs and outputs that the edge binds."""
        embedding = self.tensor("model.embed_tokens.weight")
        hidden = self.graph.embedding("input_ids", "embedding", embedding)
        delta = ""
        for layer in range(self.shape.layers):
            hidden, delta = self.layer(layer, hidden, delta)
        normed, _ = self.add_norm("final", hidden, delta, "model.norm.weight")
        head = self.tensor("lm_head.weight") if "lm_head.weight" in self.tensors else embedding
        self.decide(self.graph.linear(normed, "logits", head))
        graph = helper.make_graph(
            self.graph.nodes, "edge", self.inputs(), self.outputs(), initializer=self.graph.initializers
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tiermesh")

    def tensor(self, name: str) -> np.ndarray:
        """A weight as float32."""
        try:
            return self.tensors[name].float().numpy()
        except KeyError as exc:
            raise ModelDirError(f"the weights lack {name}") from exc

    def add_norm(self, name: str, hidden: str, delta: str, weight: str) -> tuple[str, str]:
        """The root-mean-square norm of hidden + delta, and that sum; `delta` is "" before the first layer."""
        gain = self.graph.constant(f"{name}.gain", self.tensor(weight))
        if not delta:
            return self.graph.node(
                "SimplifiedLayerNormalization", [hidden, gain], f"{name}.normed", axis=-1, epsilon=self.epsilon
            ), hidden
        outputs = [f"{name}.normed", "", "", f"{name}.sum"]
        normed = self.graph.node(
            "SkipSimplifiedLayerNormalization", [hidden, delta, gain], outputs, epsilon=self.epsilon
        )  # fmt: skip
        return normed, outputs[3]

    def layer(self, index: int, hidden: str, delta: str) -> tuple[str, str]:
        """Attention and MLP; returns the residual and what is still to be added to it."""
        prefix, name = f"model.layers.{index}.", f"layer{index}"
        normed, hidden = self.add_norm(f"{name}.attention", hidden, delta, prefix + "input_layernorm.weight")
        mixed = self.attention(index, normed)
        if index == self.shape.layers - 1:
            mixed, hidden = self.last_position(f"{name}.mixed", mixed), self.last_position(f"{name}.residual", hidden)
        delta = self.graph.linear(mixed, f"{name}.o", self.tensor(prefix + "self_attn.o_proj.weight"))
        normed, hidden = self.add_norm(f"{name}.mlp", hidden, delta, prefix + "post_attention_layernorm.weight")
        gate_up = np.concatenate([self.tensor(prefix + f"mlp.{part}_proj.weight") for part in ("gate", "up")])
        self.graph.node(
            "Split",
            [self.graph.linear(normed, f"{name}.gate_up", gate_up)],
            [f"{name}.gate", f"{name}.up"],
            axis=-1,
            num_outputs=2,
        )  # fmt: skip
        sigmoid = self.graph.node("Sigmoid", [f"{name}.gate"], f"{name}.sigmoid")
        silu = self.graph.node("Mul", [f"{name}.gate", sigmoid], f"{name}.silu")
        product = self.graph.node("Mul", [silu, f"{name}.up"], f"{name}.product")
        return hidden, self.graph.linear(product, f"{name}.down", self.tensor(prefix + "mlp.down_proj.weight"))

    def attention(self, index: int, normed: str) -> str:
        """Grouped-query attention over the shared buffers, with rotary embedding inside the kernel."""
        parts = [f"model.layers.{index}.self_attn.{part}_proj" for part in "qkv"]
        weight = np.concatenate([self.tensor(part + ".weight") for part in parts])
        biased = parts[0] + ".bias" in self.tensors
        bias = np.concatenate([self.tensor(part + ".bias") for part in parts]) if biased else None
        packed = self.graph.linear(normed, f"layer{index}.qkv", weight, bias)
        inputs = [packed, "", "", f"past_key.{index}", f"past_value.{index}", "seqlens_k", "total_length"]
        return self.graph.node(
            "GroupQueryAttention",
            inputs + self.rotary,
            [f"layer{index}.heads", f"present_key.{index}", f"present_value.{index}"],
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            do_rotary=1,
            scale=self.shape.head_dim**-0.5,
        )

    def last_position(self, name: str, source: str) -> str:
        """[1, S, width] → [1, 1, width]; past the last attention nothing else is needed."""
        if "last" not in (initializer.name for initializer in self.graph.initializers):
            self.graph.constant("last", np.array([-1], np.int64))
        return self.graph.node("Gather", [source, "last"], f"{name}.last", axis=1)

    def decide(self, logits: str) -> None:
        """token [1] and features [1, 3]: max probability, margin to the second, entropy in nats."""
        node, constant = self.graph.node, self.graph.constant
        log = node("LogSoftmax", [logits], "log_probabilities", axis=-1)
        probabilities = node("Exp", [log], "probabilities")
        node("TopK", [probabilities, constant("two", np.array([2], np.int64))], ["top", "top.ids"], axis=-1)
        node("Split", ["top"], ["top.first", "top.second"], axis=-1, num_outputs=2)
        margin = node("Sub", ["top.first", "top.second"], "margin")
        information = node("Mul", [probabilities, log], "information")
        axes = constant("axes", np.array([-1], np.int64))
        entropy = node("Neg", [node("ReduceSum", [information, axes], "negative_entropy", keepdims=1)], "entropy")
        columns = node("Concat", ["top.first", margin, entropy], "columns", axis=-1)
        node("Squeeze", [columns, constant("row", np.array([1], np.int64))], "features")
        node("ArgMax", [node("Squeeze", [logits, "row"], "flat_logits")], "token", axis=-1, keepdims=0)

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """input_ids, lengths and the KV buffers [1, kv_heads, max_length, head_dim]."""
        names = [f"past_{part}.{layer}" for layer in range(self.shape.layers) for part in ("key", "value")]
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "S"]),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total_length", TensorProto.INT32, []),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, self.buffer()) for name in names),
        ]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """logits, token and features of the last position, and the KV buffers again."""
        names = [f"present_{part}.{layer}" for layer in range(self.shape.layers) for part in ("key", "value")]
        return [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, self.shape.vocab]),
            helper.make_tensor_value_info("token", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 3]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, self.buffer()) for name in names),
        ]

    def buffer(self) -> list[int]:
        return [1, self.shape.kv_heads, self.shape.max_length, self.shape.head_dim]


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

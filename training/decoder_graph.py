"""Decoder graphs in ONNX: a whole model, or the two segments of one that is cut at an inner exit.

A graph runs any number of new tokens with the KV in buffers that the caller owns, and reads off what the edge decides
by: the greedy token and three features of its distribution.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from ..common.errors import ModelDirError
from ..edge.artifact import Architecture
from .onnx_graph import GraphBuilder

_IDS = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "S"])


@dataclass(frozen=True, slots=True)
class Weights:
    """What a graph is built from."""

    shape: Architecture
    epsilon: float
    """Of the norms."""
    tensors: Mapping[str, torch.Tensor]
    """By their Hugging Face names; an inner exit's begin with `inner_exit.`."""
    rotary: tuple[np.ndarray, np.ndarray]
    """Cosines and sines [max_length, head_dim/2]."""
    bits: int
    """Of the matrices, 4 or 8."""

    def tensor(self, name: str) -> np.ndarray:
        """A weight as float32. Raises ModelDirError when there is none."""
        try:
            return self.tensors[name].float().numpy()
        except KeyError as exc:
            raise ModelDirError(f"the weights lack {name}") from exc

    def head(self) -> np.ndarray:
        """[vocab, hidden]."""
        return self.tensor("lm_head.weight" if "lm_head.weight" in self.tensors else "model.embed_tokens.weight")


class DecoderGraph:
    """Builds one graph: the whole model, or one of the two segments of a model with an inner exit."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.shape, self.tensor = weights, weights.shape, weights.tensor
        self.graph = GraphBuilder(weights.bits)
        cos, sin = weights.rotary
        self.rotary = [self.graph.constant("cos", cos), self.graph.constant("sin", sin)]

    def whole(self) -> onnx.ModelProto:
        """Ids [1, S] → logits, token and features of the last position."""
        hidden, delta = self.layers(range(self.shape.layers), self.embedding(), "", self.last_position)
        self.head(hidden, delta)
        return self.model(range(self.shape.layers), [_IDS], self.decisions(1))

    def shallow(self, cut: int) -> onnx.ModelProto:
        """Ids [1, S] → hidden states [1, S, hidden] after `cut` layers; a guess at the last position's token.

        The inner exit is a low-rank adapter and a head of few rows: as the last position's token only those ids are
        guessed that are on its shortlist, and one more row stands for all others (see inner_exit.py).
        """
        layers = range(cut)
        hidden, delta = self.layers(layers, self.embedding(), "", lambda name, source: source)
        normed, total = self.add_norm("inner", hidden, delta, "inner_exit.norm.weight", total="hidden")
        low = self.graph.linear(self.last_position("inner.normed", normed), "inner.down", self.exit("down"))
        low = self.graph.node("Mul", [low, self.graph.node("Sigmoid", [low], "inner.sigmoid")], "inner.silu")
        delta = self.graph.linear(low, "inner.up", self.exit("up"))
        hidden = self.last_position("inner.residual", total)
        normed, _ = self.add_norm("inner.final", hidden, delta, "inner_exit.final.weight")
        self.guess(self.graph.linear(normed, "inner.logits", self.exit_rows()))
        outputs = [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, "S", self.shape.hidden]),
            helper.make_tensor_value_info("draft", TensorProto.INT64, [1, 1, 1]),
            helper.make_tensor_value_info("draft_probability", TensorProto.FLOAT, [1, 1, 1]),
        ]
        return self.model(layers, [_IDS], outputs)

    def deep(self, cut: int) -> onnx.ModelProto:
        """Hidden states [1, S, hidden] after `cut` layers → logits, token and features of the rows from `first` on."""
        layers = range(cut, self.shape.layers)
        constants = [("end", np.iinfo(np.int64).max), ("position", 1)]
        ends = [self.graph.constant(name, np.array([value], np.int64)) for name, value in constants]
        hidden, delta = self.layers(
            layers, "hidden", "", lambda name, source: self.graph.node("Slice", [source, "first", *ends], name)
        )
        self.head(hidden, delta)
        inputs = [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, "S", self.shape.hidden]),
            helper.make_tensor_value_info("first", TensorProto.INT64, [1]),
        ]
        return self.model(layers, inputs, self.decisions("R"))

    def model(
        self, layers: range, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The nodes so far as a model; adds lengths and the layers' KV buffers to its inputs and outputs."""
        lengths = [
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total_length", TensorProto.INT32, []),
        ]
        graph = helper.make_graph(
            self.graph.nodes,
            "edge",
            inputs + lengths + self.buffers("past", layers),
            outputs + self.buffers("present", layers),
            initializer=self.graph.initializers,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tiermesh")

    def embedding(self) -> str:
        """Hidden states [1, S, hidden] of the ids."""
        return self.graph.embedding("input_ids", "embedding", self.tensor("model.embed_tokens.weight"))

    def layers(self, indices: range, hidden: str, delta: str, narrow: Callable[[str, str], str]) -> tuple[str, str]:
        """Consecutive layers; past the last attention only the rows that `narrow(name, source)` leaves go on."""
        for index in indices:
            keep = narrow if index == indices[-1] else lambda name, source: source
            hidden, delta = self.layer(index, hidden, delta, keep)
        return hidden, delta

    def head(self, hidden: str, delta: str) -> None:
        """The final norm, logits and what is read off them."""
        normed, _ = self.add_norm("final", hidden, delta, "model.norm.weight")
        self.decide(self.graph.linear(normed, "logits", self.weights.head()))

    def exit(self, name: str) -> np.ndarray:
        """A weight of the inner exit."""
        return self.tensor(f"inner_exit.{name}.weight")

    def exit_rows(self) -> np.ndarray:
        """[N + 1, hidden]: the head's rows of the shortlist, and the one for all other ids."""
        return np.concatenate([self.weights.head()[self.shortlist()], self.exit("other")[None]])

    def shortlist(self) -> np.ndarray:
        """Ids that the inner exit may guess, int64 [N]."""
        return self.weights.tensors["inner_exit.shortlist"].numpy()

    def guess(self, logits: str) -> None:
        """draft [1, 1, 1], −1 for an id off the shortlist, and its probability, from logits [1, 1, N + 1]."""
        node, constant = self.graph.node, self.graph.constant
        probabilities = node("Softmax", [logits], "inner.probabilities", axis=-1)
        one = constant("one", np.array([1], np.int64))
        node("TopK", [probabilities, one], ["draft_probability", "inner.place"], axis=-1)
        node("Gather", [constant("inner.ids", np.append(self.shortlist(), -1)), "inner.place"], "draft")

    def add_norm(self, name: str, hidden: str, delta: str, weight: str, total: str = "") -> tuple[str, str]:
        """The root-mean-square norm of hidden + delta, and that sum, named `total`; at first `delta` is ""."""
        gain = self.graph.constant(f"{name}.gain", self.tensor(weight))
        if not delta:
            return self.graph.node(
                "SimplifiedLayerNormalization", [hidden, gain], f"{name}.normed", axis=-1, epsilon=self.weights.epsilon
            ), hidden
        outputs = [f"{name}.normed", "", "", total or f"{name}.sum"]
        normed = self.graph.node(
            "SkipSimplifiedLayerNormalization", [hidden, delta, gain], outputs, epsilon=self.weights.epsilon
        )  # fmt: skip
        return normed, outputs[3]

    def layer(self, index: int, hidden: str, delta: str, narrow: Callable[[str, str], str]) -> tuple[str, str]:
        """Attention, `narrow`, and MLP; returns the residual and what is still to be added to it."""
        prefix, name = f"model.layers.{index}.", f"layer{index}"
        normed, hidden = self.add_norm(f"{name}.attention", hidden, delta, prefix + "input_layernorm.weight")
        mixed = self.attention(index, normed)
        mixed, hidden = narrow(f"{name}.mixed", mixed), narrow(f"{name}.residual", hidden)
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
        biased = parts[0] + ".bias" in self.weights.tensors
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
        """From logits [1, R, vocab] token [R] and features [R, 3]: max probability, margin, entropy in nats."""
        node, constant = self.graph.node, self.graph.constant
        log = node("LogSoftmax", [logits], "log_probabilities", axis=-1)
        probabilities = node("Exp", [log], "probabilities")
        # The ids come from the logits themselves, where no two that differ are rounded to a tie.
        node("TopK", [logits, constant("two", np.array([2], np.int64))], ["top.logits", "top.ids"], axis=-1)
        node("Exp", [node("GatherElements", [log, "top.ids"], "top.log", axis=-1)], "top")
        node("Split", ["top"], ["top.first", "top.second"], axis=-1, num_outputs=2)
        margin = node("Sub", ["top.first", "top.second"], "margin")
        information = node("Mul", [probabilities, log], "information")
        axes = constant("axes", np.array([-1], np.int64))
        entropy = node("Neg", [node("ReduceSum", [information, axes], "negative_entropy", keepdims=1)], "entropy")
        columns = node("Concat", ["top.first", margin, entropy], "columns", axis=-1)
        node("Squeeze", [columns, constant("row", np.array([0], np.int64))], "features")
        first = node("Gather", ["top.ids", constant("best", np.array([0], np.int64))], "top.id", axis=-1)
        # An ArgMax over the logits took twice as long on 8 rows as this and the TopK together.
        node("Squeeze", [first, constant("row.best", np.array([0, 2], np.int64))], "token")

    def decisions(self, rows: int | str) -> list[onnx.ValueInfoProto]:
        """The outputs that the edge decides by, of `rows` positions."""
        return [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, rows, self.shape.vocab]),
            helper.make_tensor_value_info("token", TensorProto.INT64, [rows]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [rows, 3]),
        ]

    def buffers(self, side: str, layers: range) -> list[onnx.ValueInfoProto]:
        """KV buffers [1, kv_heads, max_length, head_dim]."""
        names = [f"{side}_{part}.{layer}" for layer in layers for part in ("key", "value")]
        shape = [1, self.shape.kv_heads, self.shape.max_length, self.shape.head_dim]
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]

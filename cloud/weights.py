"""Weights from the safetensors files of a Hugging Face directory, put together as the model's forward pass wants them.

Query, key and value become one matrix, gate and up another: a decode step on a CPU is bound by the number of calls as
much as by memory. Rows of query and key are permuted within each head so that the two halves of a rotary pair lie side
by side; scores don't change, since both sides of the product are permuted alike, and the rotation becomes one complex
multiplication.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .architecture import Architecture
from .checkpoint import Checkpoint, Report
from .linear import Linear, linear, linear_to_float32

Shapes = dict[str, tuple[int, ...]]
"""Of tensors, by name."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer; q = heads × head_dim, k = KV heads × head_dim."""

    input_norm: Tensor
    qkv: Linear
    """hidden → q + 2k."""
    head_norms: tuple[Tensor, Tensor] | None
    """Of query and key heads."""
    output: Linear
    """q → hidden."""
    mlp_norm: Tensor
    gate_up: Linear
    """hidden → 2 × intermediate."""
    down: Linear
    """intermediate → hidden."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model."""

    embedding: Tensor
    """[vocabulary, hidden]."""
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Linear
    """hidden → vocabulary, its results in float32: logits decide between ids."""


def load_weights(
    directory: Path,
    arch: Architecture,
    device: torch.device,
    dtype: torch.dtype,
    report: Report = lambda read, total: None,
) -> Weights:
    """All weights on `device` in `dtype`; ModelDirError for tensors that are missing, unknown or of a wrong shape.

    Besides what it returns it holds one shard at most; `report` hears of every tensor read.
    """
    files = Checkpoint(directory, report)
    try:
        shapes = _shapes(arch)
        files.check(shapes, _is_ignored(arch))
        return _Assembly(files, arch, shapes, device, dtype).weights()
    finally:
        files.close()


def _shapes(arch: Architecture) -> Shapes:
    """Every tensor of a model by its Hugging Face name."""
    hidden, inner = arch.hidden, arch.intermediate
    query, key = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    shapes: Shapes = {
        "model.embed_tokens.weight": (arch.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not arch.tied:
        shapes["lm_head.weight"] = (arch.vocab_size, hidden)
    products = {
        "self_attn.q_proj": (query, hidden, arch.qkv_bias),
        "self_attn.k_proj": (key, hidden, arch.qkv_bias),
        "self_attn.v_proj": (key, hidden, arch.qkv_bias),
        "self_attn.o_proj": (hidden, query, arch.output_bias),
        "mlp.gate_proj": (inner, hidden, arch.mlp_bias),
        "mlp.up_proj": (inner, hidden, arch.mlp_bias),
        "mlp.down_proj": (hidden, inner, arch.mlp_bias),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if arch.query_key_norm:
        norms |= {"self_attn.q_norm": arch.head_dim, "self_attn.k_norm": arch.head_dim}
    for layer in (f"model.layers.{i}." for i in range(arch.layers)):
        shapes |= {f"{layer}{name}.weight": (width,) for name, width in norms.items()}
        for name, (out, inputs, biased) in products.items():
            shapes[f"{layer}{name}.weight"] = (out, inputs)
            if biased:
                shapes[f"{layer}{name}.bias"] = (out,)
    return shapes


def _is_ignored(arch: Architecture) -> Callable[[str], bool]:
    """Tensors that may be there and hold nothing new: tables of old exports, the copy of a tied embedding."""
    return lambda name: name.endswith("rotary_emb.inv_freq") or (arch.tied and name == "lm_head.weight")


class _Assembly:
    """Reads tensors in the order of layers, which is that of the shards.

    Matrices are put together in one room: as tensors of their own they left holes between the packed ones, a quarter of
    the model's size.
    """

    def __init__(
        self, files: Checkpoint, arch: Architecture, shapes: Shapes, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._files, self._arch, self._shapes = files, arch, shapes
        self._device, self._dtype = device, dtype
        self._room = torch.empty(0, device=device, dtype=dtype)

    def weights(self) -> Weights:
        embedding = self._copy("model.embed_tokens.weight")
        layers = tuple(self._layer(f"model.layers.{i}.") for i in range(self._arch.layers))
        norm = self._copy("model.norm.weight")
        head = embedding if self._arch.tied else self._files.read("lm_head.weight")
        if self._device.type == "cuda":
            head = head.to(self._device, self._dtype)
        return Weights(embedding, layers, norm, linear_to_float32(head))

    def _layer(self, layer: str) -> LayerWeights:
        arch = self._arch
        attention, mlp = layer + "self_attn.", layer + "mlp."
        return LayerWeights(
            input_norm=self._copy(layer + "input_layernorm.weight"),
            qkv=self._linear(
                [attention + "q_proj", attention + "k_proj", attention + "v_proj"], arch.qkv_bias, turned=2
            ),
            head_norms=self._head_norms(attention) if arch.query_key_norm else None,
            output=self._linear([attention + "o_proj"], arch.output_bias),
            mlp_norm=self._copy(layer + "post_attention_layernorm.weight"),
            gate_up=self._linear([mlp + "gate_proj", mlp + "up_proj"], arch.mlp_bias),
            down=self._linear([mlp + "down_proj"], arch.mlp_bias),
        )

    def _linear(self, names: list[str], biased: bool, turned: int = 0) -> Linear:
        """Several matrices as one, the first `turned` of them with rotary pairs made neighbours."""

        bias = torch.cat([self._copy(f"{name}.bias", i < turned) for i, name in enumerate(names)]) if biased else None
        shapes = [self._shapes[f"{name}.weight"] for name in names]
        whole = self._room_for(sum(rows for rows, _ in shapes), shapes[0][1])
        parts = whole.split([rows for rows, _ in shapes])
        for i, (name, part) in enumerate(zip(names, parts, strict=True)):
            part.copy_(self._read(f"{name}.weight", i < turned))
        return linear(whole, bias)

    def _room_for(self, rows: int, columns: int) -> Tensor:
        if self._room.numel() < rows * columns:
            self._room = self._room.new_empty(rows * columns)
        return self._room[: rows * columns].view(rows, columns)

    def _head_norms(self, attention: str) -> tuple[Tensor, Tensor]:
        return self._copy(attention + "q_norm.weight", True), self._copy(attention + "k_norm.weight", True)

    def _copy(self, name: str, turned: bool = False) -> Tensor:
        return self._read(name, turned).to(self._device, self._dtype, copy=True)

    def _read(self, name: str, turned: bool) -> Tensor:
        tensor = self._files.read(name)
        return _interleave(tensor, self._arch.head_dim) if turned else tensor


def _interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Row order (0, d/2, 1, d/2 + 1, …) within each head of `rows` [heads × head_dim, …]."""
    halves = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)

"""Weights from the safetensors files of a Hugging Face directory, put together as the model's forward pass wants them.

Query, key and value become one matrix, gate and up another: a decode step on a CPU is bound by the number of calls as
much as by memory. Rows of query and key are permuted within each head so that the two halves of a rotary pair lie side
by side; scores don't change, since both sides of the product are permuted alike, and the rotation becomes one complex
multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..common.errors import ModelDirError
from ..common.model_dir import read_json
from .architecture import Architecture
from .linear import Linear, linear


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
    """hidden → vocabulary, in float32: its logits decide between ids."""


def load_weights(directory: Path, arch: Architecture, device: torch.device, dtype: torch.dtype) -> Weights:
    """All weights on `device` in `dtype`; ModelDirError for tensors that are missing, unknown or of a wrong shape."""
    source = _Source(directory, device, dtype)
    embedding = source.take("model.embed_tokens.weight", arch.vocab_size, arch.hidden)
    layers = tuple(_layer(source, arch, f"model.layers.{i}.") for i in range(arch.layers))
    norm = source.take("model.norm.weight", arch.hidden)
    if arch.tied:
        source.discard("lm_head.weight")
        head = embedding
    else:
        head = source.take("lm_head.weight", arch.vocab_size, arch.hidden)
    source.finish()
    return Weights(embedding, layers, norm, linear(head.to(torch.float32)))


def _layer(source: _Source, arch: Architecture, prefix: str) -> LayerWeights:
    q, k = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    attention, mlp = prefix + "self_attn.", prefix + "mlp."

    def stacked(parts: list[tuple[str, int]], end: str, *columns: int) -> Tensor:
        tensors = [source.take(f"{name}_proj.{end}", rows, *columns) for name, rows in parts]
        if len(parts) == 3:
            tensors[:2] = [_interleave(tensor, arch.head_dim) for tensor in tensors[:2]]
        return torch.cat(tensors)

    qkv = [(attention + "q", q), (attention + "k", k), (attention + "v", k)]
    gate_up = [(mlp + "gate", arch.intermediate), (mlp + "up", arch.intermediate)]

    def head_norm(name: str) -> Tensor:
        return _interleave(source.take(f"{attention}{name}_norm.weight", arch.head_dim), arch.head_dim)

    return LayerWeights(
        input_norm=source.take(prefix + "input_layernorm.weight", arch.hidden),
        qkv=linear(stacked(qkv, "weight", arch.hidden), stacked(qkv, "bias") if arch.qkv_bias else None),
        head_norms=(head_norm("q"), head_norm("k")) if arch.query_key_norm else None,
        output=linear(
            source.take(attention + "o_proj.weight", arch.hidden, q),
            source.take(attention + "o_proj.bias", arch.hidden) if arch.output_bias else None,
        ),
        mlp_norm=source.take(prefix + "post_attention_layernorm.weight", arch.hidden),
        gate_up=linear(stacked(gate_up, "weight", arch.hidden), stacked(gate_up, "bias") if arch.mlp_bias else None),
        down=linear(
            source.take(mlp + "down_proj.weight", arch.hidden, arch.intermediate),
            source.take(mlp + "down_proj.bias", arch.hidden) if arch.mlp_bias else None,
        ),
    )


def _interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Row order (0, d/2, 1, d/2 + 1, …) within each head of `rows` [heads × head_dim, …]."""
    halves = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


class _Source:
    """The tensors of a directory by name; remembers which were used."""

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._directory, self._device, self._dtype = directory, device, dtype
        self._where = _index(directory)
        self._left = {name for name in self._where if not name.endswith("rotary_emb.inv_freq")}

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of exactly this shape."""
        if name not in self._where:
            raise ModelDirError(f"{self._directory}: no safetensors file holds {name}")
        path = self._where[name]
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as exc:
            raise ModelDirError(f"{path}: {name} can't be read: {exc}") from exc
        if tuple(tensor.shape) != shape:
            raise ModelDirError(f"{path}: {name} has shape {tuple(tensor.shape)}, config.json wants {shape}")
        if not tensor.is_floating_point():
            raise ModelDirError(f"{path}: {name} has type {tensor.dtype}; quantized weights are not supported")
        self._left.discard(name)
        return tensor.to(self._device, self._dtype)

    def discard(self, name: str) -> None:
        """A tensor that may be there and is not needed."""
        self._left.discard(name)

    def finish(self) -> None:
        """Tensors that nobody took belong to an option that is not implemented."""
        if self._left:
            names = ", ".join(sorted(self._left)[:3])
            raise ModelDirError(f"{self._directory}: {len(self._left)} tensors are not supported: {names}")


def _index(directory: Path) -> dict[str, Path]:
    """Which file holds which tensor: from the index of a sharded model, or from the files themselves."""
    if (directory / "model.safetensors.index.json").exists():
        shards = read_json(directory / "model.safetensors.index.json").get("weight_map", {})
        return {name: directory / file for name, file in shards.items()}
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ModelDirError(f"{directory} is no complete model directory: it holds no *.safetensors")
    where: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                where |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as exc:
            raise ModelDirError(f"{path} can't be read: {exc}") from exc
    return where

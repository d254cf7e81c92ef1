"""What config.json says of a model, in one form for the Llama, Mistral, Qwen2 and Qwen3 families.

Anything that would change the result and is not implemented is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..common.errors import ModelDirError
from ..common.model_dir import read_json

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
_FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding."""

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_frequency: float = 1.0
    """llama3: wavelengths above original / low_frequency are stretched by the whole factor."""
    high_frequency: float = 4.0
    """llama3: wavelengths below original / high_frequency stay as they are."""
    original_context: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shapes and options of a decoder-only transformer with RMSNorm, rotary positions and SwiGLU."""

    family: Family
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    max_context: int
    norm_epsilon: float
    rope: Rope
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    query_key_norm: bool
    tied: bool
    windows: tuple[int | None, ...]
    """Per layer: how many latest positions attention sees; None sees all."""


def read_architecture(directory: Path) -> Architecture:
    """The architecture in `directory`/config.json; ModelDirError for what is missing or not supported."""
    config = read_json(directory / "config.json")
    try:
        return _architecture(config)
    except ModelDirError as exc:
        raise ModelDirError(f"{directory}/config.json: {exc.message}") from exc


def _architecture(config: dict[str, Any]) -> Architecture:
    names = config.get("architectures") or ["none"]
    family = _FAMILIES.get(names[0])
    if family is None:
        raise ModelDirError(f"architecture {names[0]} is not supported; use one of {', '.join(_FAMILIES)}")
    _refuse_unsupported(config)
    heads, hidden, layers = (_integer(config, k) for k in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    bias = bool(config.get("attention_bias", False))
    found = Architecture(
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_integer({"num_key_value_heads": heads} | _given(config), "num_key_value_heads"),
        head_dim=_integer({"head_dim": hidden // heads} | _given(config), "head_dim"),
        intermediate=_integer(config, "intermediate_size"),
        vocab_size=_integer(config, "vocab_size"),
        max_context=_integer(config, "max_position_embeddings"),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope=_rope(config),
        qkv_bias=bias or family == "qwen2",
        output_bias=bias and family != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
        query_key_norm=family == "qwen3",
        tied=bool(config.get("tie_word_embeddings", False)),
        windows=_windows(config, family, layers),
    )
    if found.heads % found.kv_heads or found.head_dim % 2:
        raise ModelDirError(f"{heads} heads, {found.kv_heads} KV heads of size {found.head_dim} don't fit together")
    return found


def _given(config: dict[str, Any]) -> dict[str, Any]:
    """What is not null: some files write null for what they leave to the default."""
    return {key: value for key, value in config.items() if value is not None}


def _integer(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ModelDirError(f"{key} must be a positive whole number, not {value!r}")
    return value


def _number(section: dict[str, Any], key: str) -> float:
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelDirError(f"{key} of the rope parameters must be a positive number, not {value!r}")
    return float(value)


def _refuse_unsupported(config: dict[str, Any]) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise ModelDirError(f"hidden_act {config['hidden_act']!r} is not supported; only 'silu' is")
    if config.get("quantization_config"):
        raise ModelDirError("quantization_config is not supported; use the unquantized weights")
    parameters = config.get("rope_parameters") or {}
    for section in (config, parameters):
        if section.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelDirError("partial_rotary_factor is not supported")


def _rope(config: dict[str, Any]) -> Rope:
    """Both spellings: `rope_parameters`, and the older `rope_theta` with `rope_scaling`."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or any(isinstance(value, dict) for value in scaling.values()):
        raise ModelDirError("rope parameters of unlike layers are not supported; all layers must share them")
    theta = _number({"rope_theta": 10_000.0} | config | scaling, "rope_theta")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind not in ("linear", "llama3"):
        raise ModelDirError(f"rope scaling {kind!r} is not supported; default, linear and llama3 are")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, *bounds = (_number(scaling, key) for key in keys[: 1 if kind == "linear" else 4])
    if kind == "linear":
        return Rope(theta, "linear", factor)
    return Rope(theta, "llama3", factor, bounds[0], bounds[1], int(bounds[2]))


def _windows(config: dict[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    """Mistral slides in all layers when a window is given; Qwen in those that `layer_types` or the old keys name."""
    window = config.get("sliding_window")
    if window is None or family == "llama" or (family != "mistral" and not config.get("use_sliding_window", False)):
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = 0 if family == "mistral" else config.get("max_window_layers", layers)
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != layers:
        raise ModelDirError(f"layer_types {sorted(unknown) or len(kinds)} are not supported")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)

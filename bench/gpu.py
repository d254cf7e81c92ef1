"""The engine on a GPU: one stream and many, beside transformers in the same precision on the same device.

Weights are random in the shape asked for, so nothing has to be fetched: speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tiermesh.common.errors import ConfigError, TiermeshError

from ..cloud.engine import EngineConfig
from ..cloud.runner import Placement
from ..models import starter
from .apart import Apart, Rated
from .engine_peers import CACHES, Continuous, Generate
from .engine_served import Request, Served, uniform
from .engine_speed import weight_bytes
from .kernels import copy_bandwidth
from .kit import MIN_PAIRS, paired_ratio
from .results import require_green, write_result

SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "layers": 16, "heads": 32, "kv_heads": 8},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "layers": 32, "heads": 32, "kv_heads": 8},
}
"""Of Llama 3.2 1B and Llama 3.1 8B, whose vocabulary is the same."""

_STEP_TOKENS = 2048
_PAGE = 256


def main(arguments: Sequence[str]) -> None:
    """Measures and writes results/gpu.json. Raises ConfigError where there is no GPU."""
    parser = argparse.ArgumentParser(prog="tiermesh bench gpu", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16, 64], metavar="N")
    parser.add_argument("--tokens", type=int, default=128, help="the longest answer")
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS)
    parser.add_argument("--alone", action="store_true", help="without transformers beside it")
    parser.add_argument("--force", action="store_true", help="also from a tree that was not tested")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise ConfigError("this benchmark needs a GPU, and this machine has none that torch can use")
    green, device = require_green(given.force), torch.cuda.get_device_name()
    copy = copy_bandwidth()
    print(f"{device}: copy {copy / 1e9:.0f} GB/s", flush=True)
    rows = list[dict[str, Any]]()
    for shape in given.shapes:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            write_model(directory, shape)
            for streams in given.streams:
                rows.append(
                    {"shape": shape, **measure(directory, streams, given.tokens, given.pairs, copy, alone=given.alone)}
                )
                print(_line(rows[-1]), flush=True)
                # After each: a lent GPU may be gone before the last.
                path = write_result("gpu", {"device": device, "copy_bytes_s": copy, "rows": rows}, green=green)
    print(path)


def write_model(directory: Path, shape: str) -> None:
    """Random weights of a shape in bfloat16, with the starter's tokenizer."""
    import transformers

    sizes: dict[str, Any] = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=8192,
        tie_word_embeddings=shape == "1b",
        eos_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model: Any = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    model.save_pretrained(directory)
    for path in (starter() / "cloud").glob("token*"):
        shutil.copy(path, directory)


def measure(
    directory: Path, streams: int, tokens: int, pairs: int, copy: float, *, alone: bool = False
) -> dict[str, Any]:
    """Answer tokens per second beside the engine without graphs and each peer, a step beside reading the weights."""
    if streams == 1:
        requests = uniform(1, (512, 512), (tokens, tokens))
    else:
        requests = uniform(streams, (64, 1024), (tokens // 4, tokens))
    pool = sum(len(prompt) + answer + 32 for prompt, answer in requests)
    config = EngineConfig(slots=streams, step_tokens=_STEP_TOKENS, ngram_drafts=False)
    found: dict[str, Any] = {"streams": streams}
    placement = Placement.of("cuda", "bfloat16")
    with Served.model(directory, config, pool, placement) as ours:
        found |= _steps(ours, requests)
        found["roofline_step_s"] = weight_bytes(directory) / copy
        with Served.model(directory, config, pool, placement, graphs=False) as launched:
            found["without graphs"] = _steps(launched, requests) | _beside(ours, launched, requests, pairs)
        for name, peer in () if alone else _peers(directory, streams, pool):
            try:
                with peer as theirs:
                    found[name] = _beside(ours, theirs, requests, pairs)
            except TiermeshError as error:
                found[name] = {"failed": str(error)}
    torch.cuda.empty_cache()
    return found


def _peers(directory: Path, streams: int, pool: int) -> Iterator[tuple[str, Apart]]:
    """Each with its process, which the caller ends before the next is made."""
    for cache in CACHES if streams == 1 else CACHES[:1]:
        yield f"generate, {cache}", Apart(Generate, directory, cache, torch.bfloat16, "cuda")
    if streams > 1:
        pages = pool // _PAGE + 2 * streams
        yield "continuous", Apart(Continuous, directory, streams, torch.bfloat16, "cuda", pages, _STEP_TOKENS)


def _beside(ours: Served, theirs: Rated, requests: Sequence[Request], pairs: int) -> dict[str, Any]:
    return paired_ratio(lambda: ours.rate(requests), lambda: theirs.rate(requests), pairs=pairs).facts()


def _steps(ours: Served, requests: Sequence[Request]) -> dict[str, Any]:
    ours.rate(requests)
    before, began = ours.load, time.perf_counter()
    rate = ours.rate(requests)
    took, after = time.perf_counter() - began, ours.load
    steps = after.steps - before.steps
    parts = {name: (after.parts_s[name] - before.parts_s[name]) / steps for name in after.parts_s}
    return {"tokens_s": rate, "steps": steps, "step_s": took / steps, "parts_s": parts}


def _line(row: dict[str, Any]) -> str:
    peers = "  ".join(
        f"{name}: {found['ratio']:.2f}" if "ratio" in found else f"{name}: failed"
        for name, found in row.items()
        if isinstance(found, dict) and name != "parts_s"
    )
    parts = " ".join(f"{name} {1e3 * spent:.2f}" for name, spent in row["parts_s"].items())
    return (
        f"{row['shape']} × {row['streams']:<3} {row['tokens_s']:8.0f} tokens/s, step {1e3 * row['step_s']:.2f} ms "
        f"({parts}), weights alone {1e3 * row['roofline_step_s']:.2f} ms; times {peers}"
    )

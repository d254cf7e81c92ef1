"""From a configuration to a worker: reads the model, sizes the KV pool, joins the parts."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..common.config import CloudConfig
from ..common.errors import ConfigError
from ..common.model_dir import digests, read_eos_ids
from ..common.text import Text
from ..common.types import Digests, ModelInfo
from ..common.validate import Limits
from .architecture import Architecture, read_architecture
from .engine import Engine, EngineConfig
from .load_report import load_report
from .metrics import Metrics
from .models import KvPool
from .runner import BLOCK_SIZE, ModelRunner, Placement
from .service import Served, Worker

_MEMORY_SHARE = 0.5
"""Of the memory that is free once the weights are loaded, the KV pool takes at most this."""

_STEP_TOKENS = {"cpu": 128, "cuda": 2048}
"""Rows of one step. On two cores 128 rows of the 15 M starter take some 50 ms, which is what a running answer waits."""


def load_worker(config: CloudConfig, name: str | None = None) -> Worker:
    """A worker with its engine, not yet started. Raises ModelDirError or ConfigError when it can't be."""
    if not config.model.is_dir():
        raise ConfigError(f"{config.model}: there is no such model directory")
    placement = Placement.of(config.device, config.dtype)
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 2) - 1))
    text, eos_ids = Text(config.model), frozenset(read_eos_ids(config.model))
    runner = load_runner(config.model, placement, config.slots)
    if config.cuda_graphs:
        runner.record(config.slots)
    limits = EngineConfig(
        config.slots,
        _STEP_TOKENS[placement.device.type],
        session_lease_s=config.session_lease_s,
        tiers=config.tiers,
        prefix_cache=config.prefix_cache,
        ngram_drafts=config.ngram_drafts,
    )
    engine = Engine(runner, text, limits)
    found = digests(config.model)
    # A session may need one position behind the answer's last: an end-of-text id that is still to be verified.
    context = min(runner.max_context, engine.pool_tokens - 1)
    info = ModelInfo(
        name or config.model.resolve().name,
        Digests(found.model, found.tokenizer, found.template),
        context,
        runner.vocab_size,
    )
    served = Served(info, text, eos_ids, Limits(context, runner.vocab_size), config.token)
    return Worker(served, engine, Metrics(engine))


def load_runner(directory: Path, placement: Placement, slots: int) -> ModelRunner:
    """The model with a KV pool for `slots` whole contexts, or for as much as memory allows."""
    arch = read_architecture(directory)
    whole = slots * (arch.max_context + BLOCK_SIZE)
    affordable = int(_free_bytes(placement) * _MEMORY_SHARE) - _weight_bytes(arch, placement)
    tokens = min(whole, affordable // KvPool.bytes_per_token(arch, placement.dtype))
    if tokens < 2 * BLOCK_SIZE:
        raise ConfigError(f"{directory}: the model leaves no memory for a KV pool on {placement.device}")
    with load_report(directory.resolve().name) as report:
        return ModelRunner.load(directory, placement, tokens, report)


def _free_bytes(placement: Placement) -> int:
    if placement.device.type == "cuda":
        return torch.cuda.mem_get_info(placement.device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _weight_bytes(arch: Architecture, placement: Placement) -> int:
    """What the weights take at most: the large matrices, the head in float32. Sixteen bits may hold them."""
    heads = (2 * arch.heads + 2 * arch.kv_heads) * arch.head_dim
    layers = arch.layers * arch.hidden * (heads + 3 * arch.intermediate)
    return (layers + arch.vocab_size * arch.hidden) * placement.dtype.itemsize + arch.vocab_size * arch.hidden * 4

"""Sections of `bench engine` on speed: a single stream, a mixed batch beside the roofline, overhead, scheduling."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence as Many
from pathlib import Path

import torch

from tiermesh.common.errors import TiermeshError

from ..cloud.architecture import read_architecture
from ..cloud.engine import EngineConfig
from ..cloud.meter import EngineLoad
from ..cloud.own_thread import on_own_thread
from .apart import Apart
from .engine_claims import Claim, Setting
from .engine_peers import CACHES, Continuous, Generate
from .engine_served import Request, Served, uniform
from .kit import PairedRatio, paired_ratio, seconds

_STREAMS = 16
_WAITING = 1000
_SKIPPED = 8
"""Steps in which streams come in."""


def single(given: Setting) -> list[Claim]:
    """One stream against `generate` with each of its caches; the one that is faster counts."""
    requests = uniform(1, (given.few(128, 16),) * 2, (given.few(128, 16),) * 2)
    ratios = {}
    with Served.model(given.model, EngineConfig(slots=1, ngram_drafts=False), 512) as ours:
        for cache in CACHES:
            with Apart(Generate, given.model, cache) as theirs:
                ratios[cache] = _against(given, ours, theirs, requests)
        best = min(ratios, key=lambda cache: ratios[cache].median)
        others = {cache: ratio.facts() for cache, ratio in ratios.items() if cache != best}
        others["bfloat16"] = _against_bfloat16(given, ours, best, requests)
    what = f"single stream: tokens/s ÷ transformers' generate ({best} cache, the faster)"
    return [Claim.of(what, ratios[best], 1.5, at_least=True, cache=best, other=others, ngram_drafts=False)]


def mixed(given: Setting) -> list[Claim]:
    """Streams of unlike lengths against both peers, and a step's time against reading the weights once."""
    requests = uniform(_STREAMS, (16, given.few(512, 48)), (16, given.few(256, 24)))
    pool = sum(len(prompt) + tokens + 16 for prompt, tokens in requests)
    facts = {
        "streams": _STREAMS,
        "prompt_tokens": [len(prompt) for prompt, _ in requests],
        "answer_tokens": [tokens for _, tokens in requests],
        "ngram_drafts": False,
    }
    with Served.model(given.model, EngineConfig(slots=_STREAMS, ngram_drafts=False), pool) as ours:
        cache = _faster(given, requests)
        with Apart(Generate, given.model, cache) as padded:
            batch = _against(given, ours, padded, requests)
        rough = _against_bfloat16(given, ours, cache, requests)
        with Apart(Continuous, given.model, _STREAMS) as theirs:
            continuous = _against(given, ours, theirs, requests)
        facts |= _roofline(given, ours, requests) | {"bfloat16": rough}
    return [
        Claim.of("16 mixed streams: useful tokens/s ÷ generate, padded", batch, 2, at_least=True, **facts),
        Claim.of("16 mixed streams: tokens/s ÷ transformers' continuous batching", continuous, 1, at_least=True),
    ]


def _against(given: Setting, ours: Served, theirs: Apart, requests: Many[Request]) -> PairedRatio:
    return paired_ratio(lambda: ours.rate(requests), lambda: theirs.rate(requests), pairs=given.pairs)


def _against_bfloat16(given: Setting, ours: Served, cache: str, requests: Many[Request]) -> dict[str, object]:
    """The same beside a `generate` that computes in bfloat16: less work, and other texts than those of float32."""
    with Apart(Generate, given.model, cache, torch.bfloat16) as theirs:
        return _against(given, ours, theirs, requests).facts()


def _faster(given: Setting, requests: Many[Request]) -> str:
    """The cache with which `generate` takes less time for these requests, each warmed up."""
    rates = {}
    for cache in CACHES:
        with Apart(Generate, given.model, cache) as peer:
            peer.rate(requests)
            rates[cache] = peer.rate(requests)
    return max(rates, key=lambda cache: rates[cache])


def _roofline(given: Setting, ours: Served, requests: Many[Request]) -> dict[str, object]:
    """What a step takes, and what it would take to read the weights at the rate of a copy."""
    bandwidth = copy_bandwidth()
    steps, began = ours.load.steps, time.perf_counter()
    ours.rate(requests)
    step_s = (time.perf_counter() - began) / (ours.load.steps - steps)
    weights = weight_bytes(given.model)
    return {
        "step_s": step_s,
        "weight_bytes": weights,
        "copy_bytes_s": bandwidth,
        "roofline_step_s": weights / bandwidth,
        "share_of_roofline": weights / bandwidth / step_s,
    }


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of copying 256 MiB, the best of ten."""

    def copy() -> float:
        source = torch.ones(1 << 26)
        target = torch.empty_like(source)
        return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(10))

    return on_own_thread(copy)


def weight_bytes(directory: Path) -> int:
    """Of all matrices that a step multiplies with, at two bytes each; embeddings count as the head alone."""
    arch = read_architecture(directory)
    attention = (2 * arch.heads + 2 * arch.kv_heads) * arch.head_dim * arch.hidden
    layer = attention + 3 * arch.hidden * arch.intermediate
    return 2 * (arch.layers * layer + arch.vocab_size * arch.hidden)


class Watch:
    """Snapshots of the load, one behind each step that gave the watched stream an id."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.seen: list[tuple[float, EngineLoad]] = []

    def __call__(self) -> None:
        self.seen.append((time.perf_counter(), self._served.load))


def overhead(given: Setting) -> list[Claim]:
    """Share of steps at batch 16 in neither the model nor the sampler, and deciding while a thousand wait."""
    tokens = given.few(160, 80)
    requests = uniform(_STREAMS, (32, 32), (tokens, tokens))
    config = EngineConfig(slots=_STREAMS, ngram_drafts=False, max_waiting=2 * _WAITING)
    with Served.model(given.model, config, _STREAMS * (tokens + 128)) as ours:
        ours.rate(requests)
        runs = [_decoding(ours, requests) for _ in range(given.pairs)]
        scheduling = _crowded(ours, given.few(300, 40))
    shares, parts = [share for share, _ in runs], [part for _, part in runs]
    facts = {"spread": [min(shares), max(shares)], "parts": parts, "streams": _STREAMS}
    spent = {"p50_ms": statistics.median(scheduling), "max_ms": max(scheduling), "steps": len(scheduling)}
    return [
        Claim("batch 16: share of a step outside forward and sampling", statistics.median(shares), 0.15, False, facts),
        Claim("1,000 waiting: ms to schedule a step, median", statistics.median(scheduling), 1.0, False, spent),
    ]


def _decoding(ours: Served, requests: Many[Request]) -> tuple[float, dict[str, float]]:
    """Of the wall time while all streams decode: the share outside forward and sampling, and seconds by part."""
    watch = Watch(ours)
    streams = [ours.submit(prompt, tokens) for prompt, tokens in requests[:-1]]
    # The last one comes in when all others have.
    streams.append(ours.submit(*requests[-1], watch=watch))
    for stream in streams:
        stream.wait()
    window = [(at, load) for at, load in watch.seen[_SKIPPED:] if load.running == len(requests)]
    if len(window) < _SKIPPED:
        raise TiermeshError("the streams hardly ran together; they need longer answers")
    (began, before), (ended, after) = window[0], window[-1]
    assert before.rows["prefill"] == after.rows["prefill"]
    parts = {name: after.parts_s[name] - before.parts_s[name] for name in after.parts_s}
    wall = ended - began
    return 1 - (parts["forward"] + parts["sample"]) / wall, parts | {"wall": wall}


def _crowded(ours: Served, steps: int) -> list[float]:
    """Milliseconds that each step takes to schedule while a thousand requests wait behind sixteen."""
    watch = Watch(ours)
    prompts = [prompt for prompt, _ in uniform(_STREAMS + _WAITING, (16, 64), (1, 1))]
    # Sixteen that stay as long as it takes; theirs is the place of the first to come.
    first = ours.submit(prompts[0], min(steps, 2 * _SKIPPED) + steps, watch=watch)
    streams = [first] + [ours.submit(prompt, 64) for prompt in prompts[1:]]
    first.wait()
    crowd = [load for _, load in watch.seen if load.waiting >= _WAITING * 9 // 10]
    ours.cancel(streams)
    pairs = itertools.pairwise(crowd)
    spent = [(b.parts_s["schedule"] - a.parts_s["schedule"]) / (b.steps - a.steps) for a, b in pairs]
    return [1e3 * each for each in spent]

"""Sections of `bench engine` on waiting: a long prompt beside streams, shared prefixes, a realtime arrival at a full
engine."""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from pathlib import Path

from tiermesh.common.errors import TiermeshError

from ..cloud.engine import EngineConfig
from ..common.config import TierConfig
from ..training.random_model import write_random_model
from .apart import Apart
from .engine_claims import Claim, Setting
from .engine_served import Request, Served, Stream, drawn, uniform
from .kit import PairedRatio, paired_ratio, percentile

_CONTEXT = 4096
_DECODING = 8
_SETTLED = 16
"""Ids that each stream has before anything is measured."""
_TIERS = tuple(TierConfig(name, 1.0, 600.0, 0.0) for name in ("realtime", "standard", "batch"))


@contextmanager
def long_context_model(given: Setting) -> Iterator[Path]:
    """Random weights of the starter's shape with a context of 4,096; two small layers when quick."""
    with tempfile.TemporaryDirectory() as folder:
        if given.quick:
            yield write_random_model(Path(folder), max_length=_CONTEXT)
        else:
            yield write_random_model(
                Path(folder), layers=8, hidden=384, heads=6, kv_heads=2, vocab=4096, max_length=_CONTEXT
            )


def long_prompt(given: Setting) -> list[Claim]:
    """Times between two ids of eight streams while a 2,000-token prompt is read, and just before or after."""
    rng, prompt = random.Random(0), given.few(2000, 200)
    config = EngineConfig(slots=_DECODING + 1, ngram_drafts=False)
    pairs = list[tuple[list[float], list[float]]]()
    with (
        long_context_model(given) as model,
        Served.model(model, config, _DECODING * 1024 + prompt + 64) as ours,
    ):
        for number in range(given.pairs + 1):
            pairs.append(_entered(ours, given, rng, prompt, quiet_first=number % 2 == 0))
    ninety_nine = [tuple(percentile(gaps, 0.99) for gaps in pair) for pair in pairs[1:]]
    ratio = _ratio([busy for busy, _ in ninety_nine], [quiet for _, quiet in ninety_nine])
    facts = {
        "p50_s": [statistics.median(gap for pair in pairs[1:] for gap in pair[i]) for i in (0, 1)],
        "gaps": [[len(busy), len(quiet)] for busy, quiet in pairs[1:]],
        "prompt_tokens": prompt,
        "streams": _DECODING,
        "ngram_drafts": False,
    }
    what = "p99 between ids of 8 streams while a 2,000-token prompt enters ÷ undisturbed"
    return [Claim.of(what, ratio, 2, at_least=False, **facts)]


def _entered(
    ours: Served, given: Setting, rng: random.Random, prompt: int, *, quiet_first: bool
) -> tuple[list[float], list[float]]:
    """Gaps between ids of all streams: while the prompt was read, and undisturbed."""
    quiet_ids = given.few(64, 8)
    streams = [ours.submit(drawn(rng, 64), 900) for _ in range(_DECODING)]
    _advance(streams, _SETTLED)
    quiet = (0.0, 0.0)
    if quiet_first:
        quiet = _span(streams, quiet_ids)
    began = time.perf_counter()
    late = ours.submit(drawn(rng, prompt), 1)
    late.wait()
    busy = began, late.times[0]
    if not quiet_first:
        _advance(streams, 2)
        quiet = _span(streams, quiet_ids)
    _advance(streams, 2)
    ours.cancel(streams)
    return _gaps(streams, busy, whole=False), _gaps(streams, quiet, whole=True)


def _advance(streams: Many[Stream], more: int) -> None:
    for stream in streams:
        stream.wait(len(stream.ids) + more)


def _span(streams: Many[Stream], more: int) -> tuple[float, float]:
    """From now until each stream has so many more ids."""
    began = time.perf_counter()
    _advance(streams, more)
    return began, time.perf_counter()


def _gaps(streams: Many[Stream], span: tuple[float, float], *, whole: bool) -> list[float]:
    """Between two ids, where both came within the span, or unless `whole` where a part of the gap lies in it."""
    gaps = []
    for stream in streams:
        for before, after in itertools.pairwise(stream.times):
            inside = span[0] <= before and after <= span[1] if whole else span[0] < after and before < span[1]
            if inside:
                gaps.append(after - before)
    return gaps


def _ratio(ours: list[float], theirs: list[float]) -> PairedRatio:
    return PairedRatio(tuple(a / b for a, b in zip(ours, theirs, strict=True)), tuple(ours), tuple(theirs))


def prefix(given: Setting) -> list[Claim]:
    """TTFT with a prefix that was computed before, and what looking for one costs where there is none."""
    rng, shared = random.Random(1), given.few(1000, 96)
    firsts, seconds = list[float](), list[float]()
    with long_context_model(given) as model, Served.model(model, EngineConfig(ngram_drafts=False), 4096) as ours:
        for number in range(2 * given.pairs + 1):
            beginning = drawn(rng, shared)
            for times in (firsts, seconds):
                stream = ours.submit(beginning + drawn(rng, 24), 4, tenant=f"pair {number}")
                stream.wait()
                times.append(stream.ttft_s)
    facts = {"prefix_tokens": shared, "own_tokens": 24}
    ttft = _ratio(seconds[1:], firsts[1:])
    return [
        Claim.of("1,000 tokens of shared prefix: second TTFT ÷ first", ttft, 0.2, at_least=False, **facts),
        _cost_without_hits(given),
    ]


def _cost_without_hits(given: Setting) -> Claim:
    """Seconds of the same requests with the prefix cache ÷ without, each by a tenant of its own."""
    requests = uniform(16, (16, given.few(512, 48)), (16, given.few(64, 24)), seed=1)
    pool = sum(len(prompt) + tokens + 16 for prompt, tokens in requests)

    def config(cache: bool) -> EngineConfig:
        return EngineConfig(prefix_cache=cache, ngram_drafts=False)

    # In a process of its own each, as a worker is.
    with (
        Served.model(given.model, config(True), pool) as on,
        Apart(Served.model, given.model, config(False), pool) as off,
    ):
        cost = paired_ratio(
            lambda: 1 / on.rate(requests), lambda: 1 / off.rate(requests), pairs=given.few(3, 1) * given.pairs
        )
        hits = on.load.prompts["cached"]
    what = "prefix cache at 0 % hits: time on ÷ off"
    return Claim.of(what, cost, 1.02, at_least=False, cached_prompt_tokens=hits)


def tiers(given: Setting) -> list[Claim]:
    """A realtime arrival at an engine full of batch work, against an idle one; and what that does to the batch."""
    slots, arrivals = 8, given.few(12, 3)
    batch = uniform(given.few(48, 32), (64, 64), (given.few(192, 48),) * 2, seed=2)
    # Room for seven of the eight at their longest: KV is short too.
    pool = 7 * (len(batch[0][0]) + batch[0][1])
    config = EngineConfig(slots=slots, tiers=_TIERS, ngram_drafts=False)
    rounds = list[tuple[float, float, float]]()
    changed = compared = 0
    roomy = EngineConfig(slots=len(batch), ngram_drafts=False)
    with Served.model(given.model, roomy, len(batch) * 2 * pool // slots) as undisturbed:
        texts = _texts(undisturbed, batch)
    with Served.model(given.model, config, pool) as ours:
        for number in range(given.pairs):
            rng = random.Random(f"tiers {number}")
            idle = [_arrival(ours, rng) for _ in range(arrivals)]
            streams = [ours.submit(*request, tier="batch") for request in batch]
            busy, step_s = _at_full(ours, streams, slots, rng, arrivals)
            ours.cancel(streams)
            changed += sum(stream.ids != text[: len(stream.ids)] for stream, text in zip(streams, texts, strict=True))
            compared += sum(len(stream.ids) for stream in streams)
            rounds.append((percentile(busy, 0.95), percentile(idle, 0.95), step_s))
        preemptions = dict(ours.load.preemptions)
    if not any(preemptions.values()):
        raise TiermeshError("nobody gave way: the engine was not full when realtime requests came")
    bound = _ratio([busy for busy, _, _ in rounds], [idle + 2 * step_s for _, idle, step_s in rounds])
    facts = {"idle_p95_s": [r[1] for r in rounds], "step_s": [r[2] for r in rounds], "preemptions": preemptions}
    what = "saturated by batch: realtime TTFT p95 ÷ (idle TTFT p95 + 2 saturated steps)"
    return [
        Claim.of(what, bound, 1, at_least=False, arrivals=arrivals, **facts),
        Claim(
            "saturated by batch: texts that differ from an undisturbed run",
            changed,
            0,
            False,
            {"ids_compared": compared, "preemptions": preemptions},
        ),
    ]


def _texts(ours: Served, batch: Many[Request]) -> list[list[int]]:
    """What the requests give where nobody has to make way."""
    streams = [ours.submit(*request) for request in batch]
    for stream in streams:
        stream.wait()
    assert not any(ours.load.preemptions.values())
    return [stream.ids for stream in streams]


def _arrival(ours: Served, rng: random.Random) -> float:
    stream = ours.submit(drawn(rng, 64), 4, tier="realtime")
    stream.wait()
    return stream.ttft_s


def _at_full(
    ours: Served, streams: Many[Stream], slots: int, rng: random.Random, arrivals: int
) -> tuple[list[float], float]:
    """TTFT of arrivals while all slots are taken and others wait, and seconds of a step between them."""
    _advance(streams[:1], _SETTLED)
    ttft, steps, time_s = list[float](), 0, 0.0
    for _ in range(arrivals):
        began, before = time.perf_counter(), ours.load.steps
        time.sleep(rng.uniform(0.2, 0.4))
        steps, time_s = steps + ours.load.steps - before, time_s + time.perf_counter() - began
        if not ours.load.waiting:
            raise TiermeshError("the batch work ran out before the arrivals did; this machine needs more of it")
        ttft.append(_arrival(ours, rng))
    return ttft, time_s / steps

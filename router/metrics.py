"""What the router tells Prometheus. Labels are tiers, workers and nodes of the configuration, or of fixed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from ..common.telemetry import LATENCY_BUCKETS_S, TPOT_BUCKETS_S
from .cache_metrics import CacheMetrics, LimitCalls

_WORKER_FACTS = {
    "up": "1 while requests may go there.",
    "slots": "Sequences that it runs at once.",
    "running": "Sequences that run there.",
    "waiting": "Sequences that wait there.",
    "kv_free": "Share of its KV pool that is free.",
    "step_seconds": "Mean time of its recent steps.",
    "prefix_hit": "Mean share of its recent prompts that it found computed.",
    "preemptions": "Sequences there that gave way to others, since its start.",
    "in_flight": "Requests that this router gave it.",
    "limit": "Requests that this router gives it at most.",
}


_EDGE_TOKENS = {
    "alone": "Tokens that edge nodes showed without asking, under a bound.",
    "labelled": "Of these, as far as visits and audits told what the cloud would have taken.",
    "wrong": "Of the labelled ones: the cloud would have taken others.",
    "audit": "Prompt and answer tokens that were read for audits.",
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is, at the moment of a scrape."""

    queued: dict[str, int]
    """Waiting requests by tier."""
    running: int
    """Requests that hold a slot."""
    slots: int
    room: int
    """Requests of the highest tier for which workers make room beyond that."""
    workers: dict[str, dict[str, float]]
    """Facts by worker; see `_WORKER_FACTS`."""
    nodes: dict[str, int]
    """Sessions by connected edge node."""


class _State(Collector):
    """Gauges read at the scrape itself."""

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        self._look = look

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called in the thread of the HTTP port; reads only."""
        now = self._look()
        yield _gauge("queue_length", "Requests that wait.", "tier", now.queued)
        yield GaugeMetricFamily("tiermesh_router_running", "Requests that hold a slot.", value=now.running)
        yield GaugeMetricFamily("tiermesh_router_slots", "Requests that may run at once.", value=now.slots)
        words = "Requests that may run beyond that while the highest tier presses."
        yield GaugeMetricFamily("tiermesh_router_room", words, value=now.room)
        for fact, words in _WORKER_FACTS.items():
            values = {worker: facts[fact] for worker, facts in now.workers.items() if fact in facts}
            yield _gauge(f"worker_{fact}", words, "worker", values)
        yield _gauge("node_sessions", "Sessions of each connected edge node.", "node", now.nodes)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing in advance: the names are fixed, the labels are not."""
        return iter(())


class Metrics:
    """The instruments of one router."""

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        self.registry = r = CollectorRegistry()
        self._requests = Counter(
            "tiermesh_router_requests_total",
            "Requests by tier and how they ended (a finish or an error reason).",
            ["tier", "outcome"],
            registry=r,
        )
        self._in_time = Counter(
            "tiermesh_router_in_time_total",
            "Requests whose first token came within their tier's budget; what was refused is in requests_total alone.",
            ["tier"],
            registry=r,
        )
        self._tokens = Counter("tiermesh_router_tokens_total", "Answer tokens by origin.", ["origin"], registry=r)
        self.cache = CacheMetrics(r)
        self.limit_calls = LimitCalls(r)
        self._resumed = Counter("tiermesh_router_resumed_total", "Answers that went on at another worker.", registry=r)
        self._reports = Counter(
            "tiermesh_router_edge_units_total", "Units of edge nodes, by what became of them.", ["decision"], registry=r
        )
        self._edge_tokens = {
            fact: Counter(f"tiermesh_router_edge_{fact}_tokens_total", words, ["node"], registry=r)
            for fact, words in _EDGE_TOKENS.items()
        }
        self._audits = Counter(
            "tiermesh_router_edge_audits_total", "Audits of edge nodes, by outcome.", ["node", "outcome"], registry=r
        )
        self._queue_s = _histogram("queue", "Time until a slot was free.", LATENCY_BUCKETS_S, r)
        self._ttft_s = _histogram("ttft", "Time to the first token.", LATENCY_BUCKETS_S, r)
        self._tpot_s = _histogram("tpot", "Time per output token after the first.", TPOT_BUCKETS_S, r)
        r.register(_State(look))
        # `labels` takes a lock and the time of ten increments; for what each request counts they are kept.
        self._ended_as, self._in_time_in = cache(self._requests.labels), cache(self._in_time.labels)
        self._tokens_of = cache(self._tokens.labels)
        self._queue_in, self._ttft_in = cache(self._queue_s.labels), cache(self._ttft_s.labels)
        self._tpot_in = cache(self._tpot_s.labels)

    def watch_config(self, current: Callable[[], bool], since: Callable[[], float]) -> None:
        """Where the gauges on the configuration find what they show."""
        words = "1 while the configuration on disk is in force, 0 while a fault keeps it out."
        Gauge("tiermesh_router_config_current", words, registry=self.registry).set_function(current)
        words = "When the configuration in force was taken, in seconds since 1970."
        Gauge("tiermesh_router_config_since_seconds", words, registry=self.registry).set_function(since)

    def ended(self, tier: str, outcome: str) -> None:
        """A request has its outcome; the tier is one of the configuration, or empty when it never got that far."""
        self._ended_as(tier, outcome).inc()

    def in_time(self, tier: str) -> None:
        """A request's first token came within its tier's budget."""
        self._in_time_in(tier).inc()

    def attained(self) -> dict[str, tuple[int, int]]:
        """By tier, how many requests ended, and how many of them had their first token in time."""
        ended: dict[str, float] = {}
        for sample in _samples(self._requests):
            ended[sample.labels["tier"]] = ended.get(sample.labels["tier"], 0.0) + sample.value
        in_time = {sample.labels["tier"]: sample.value for sample in _samples(self._in_time)}
        return {tier: (int(count), int(in_time.get(tier, 0))) for tier, count in ended.items()}

    def tokens(self, origin: Literal["edge", "cloud", "cache"], count: int) -> None:
        """Answer tokens of one origin."""
        self._tokens_of(origin).inc(count)

    def resumed(self) -> None:
        """An answer went on at another worker."""
        self._resumed.inc()

    def units(self, alone: int, asks: int, handed_over: bool) -> None:
        """What an edge node reports of one answer."""
        for decision, count in (("alone", alone), ("ask", asks), ("hand_over", int(handed_over))):
            self._reports.labels(decision).inc(count)

    def alone(self, node: str, shown: int, labelled: int, wrong: int) -> None:
        """Tokens that an edge node showed alone, and those that the cloud has labelled since."""
        for fact, count in (("alone", shown), ("labelled", labelled), ("wrong", wrong)):
            self._edge_tokens[fact].labels(node).inc(count)

    def audited(self, node: str, audits: int, lost: int, tokens: int) -> None:
        """Audits that an edge node reports as ended, and what they had the cloud read."""
        self._audits.labels(node, "labelled").inc(audits - min(lost, audits))
        self._audits.labels(node, "lost").inc(lost)
        self._edge_tokens["audit"].labels(node).inc(tokens)

    def queued(self, tier: str, seconds: float) -> None:
        """A request got its slot after this time."""
        self._queue_in(tier).observe(seconds)

    def first_token(self, tier: str, seconds: float) -> None:
        """A request got its first token after this time."""
        self._ttft_in(tier).observe(seconds)

    def tpot(self, tier: str, decode_s: float, output_tokens: int) -> None:
        """An answer took this time after its first token."""
        if output_tokens > 1:
            self._tpot_in(tier).observe(decode_s / (output_tokens - 1))


def _samples(counter: Counter) -> list[Sample]:
    found = [sample for family in counter.collect() for sample in family.samples]
    return [sample for sample in found if sample.name.endswith("_total")]


def _gauge(name: str, words: str, label: str, values: dict[str, float] | dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tiermesh_router_{name}", words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(name: str, words: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"tiermesh_router_{name}_seconds", words, ["tier"], buckets=buckets, registry=registry)

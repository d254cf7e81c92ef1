"""What a worker tells Prometheus. The engine's own figures are read when they are scraped, so a step pays nothing."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..common.telemetry import LATENCY_BUCKETS_S, TPOT_BUCKETS_S
from .engine import Engine
from .outputs import Ended


class _EngineFigures(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        load = self._engine.load
        for name, help_text, value in (
            ("slots", "Sequences that may run at once.", load.slots),
            ("running", "Sequences that run.", load.running),
            ("waiting", "Sequences that wait for a slot or for KV blocks.", load.waiting),
            ("kv_free_ratio", "Share of the KV pool that no running sequence holds.", load.kv_free),
            ("kv_named_ratio", "Share of the KV pool that later prompts can find.", load.kv_named),
            ("step_seconds", "Mean duration of the recent steps.", load.step_s),
        ):
            yield GaugeMetricFamily(f"tiermesh_cloud_{name}", help_text, value)
        for name, help_text, value in (
            ("steps", "Passes of the model.", load.steps),
            ("tokens", "Tokens run, prompts and drafts included.", load.tokens),
            ("choices", "Positions at which the model chose.", load.choices),
            ("ngram_drafted", "Ids drafted by looking back.", load.drafted),
            ("ngram_accepted", "Of these: what the model would have chosen too.", load.accepted),
        ):
            yield CounterMetricFamily(f"tiermesh_cloud_{name}", help_text, value)
        for name, help_text, label, values in (
            ("rows", "Rows run, by kind: prefill, decode, draft.", "kind", load.rows),
            (
                "prompt_tokens",
                "Prompt tokens begun: cached ones were found, the others computed.",
                "source",
                load.prompts,
            ),
            (
                "preemptions",
                "Sequences that gave way, by what was short: slots, kv, growth.",
                "short",
                load.preemptions,
            ),
            ("step_part_seconds", "Time of the engine's thread by part of a step.", "part", load.parts_s),
        ):
            family = CounterMetricFamily(f"tiermesh_cloud_{name}", help_text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value)
            yield family


class Metrics:
    """Counters and histograms of one worker, on a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineFigures(engine))
        self._requests = Counter(
            "tiermesh_cloud_requests",
            "Requests by kind (generate, verify, score) and outcome (stop, length, cancelled, or an error's reason).",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self._asks = Counter("tiermesh_cloud_asks", "Drafts verified.", registry=self.registry)
        self._drafted = Counter(
            "tiermesh_cloud_draft_tokens", "Drafted tokens by fate.", ["fate"], registry=self.registry
        )
        self._ttft = Histogram(
            "tiermesh_cloud_ttft_seconds", "Time to first token.", registry=self.registry, buckets=LATENCY_BUCKETS_S
        )
        self._tpot = Histogram(
            "tiermesh_cloud_tpot_seconds", "Time per later token.", registry=self.registry, buckets=TPOT_BUCKETS_S
        )

    def finished(self, kind: str, outcome: str) -> None:
        """A request came to its end."""
        self._requests.labels(kind, outcome).inc()

    def verified(self, drafted: int, stands: int) -> None:
        """An ask was answered."""
        self._asks.inc()
        self._drafted.labels("stands").inc(stands)
        self._drafted.labels("falls").inc(drafted - stands)

    def answered(self, ended: Ended) -> None:
        """An answer is complete; its stages become TTFT and TPOT."""
        stages = {timing.stage: timing.duration_s for timing in ended.timings}
        if "decode" in stages:
            self._ttft.observe(stages["queue"] + stages["prefill"])
            if ended.answer_tokens > 1:
                self._tpot.observe(stages["decode"] / (ended.answer_tokens - 1))

"""What an edge node tells Prometheus. Labels are of fixed sets or of the configuration; never of requests."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..common.telemetry import LATENCY_BUCKETS_S, TPOT_BUCKETS_S


class EdgeMetrics:
    """The instruments of one node."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "tiermesh_edge_requests_total",
            "Requests by how they ended (a finish or an error reason).",
            ["outcome"],
            registry=r,
        )
        self.tokens = Counter("tiermesh_edge_tokens_total", "Answer tokens by origin.", ["origin"], registry=r)
        self.decisions = Counter(
            "tiermesh_edge_decisions_total", "Units by what became of them.", ["decision"], registry=r
        )
        self.labels = Counter(
            "tiermesh_edge_labels_total",
            "Tokens shown alone, by whether the cloud would have taken them; as far as visits told.",
            ["agrees"],
            registry=r,
        )
        self.degraded = Counter(
            "tiermesh_edge_degraded_total", "Answers with tokens that should have been verified.", registry=r
        )
        self.ttft = Histogram(
            "tiermesh_edge_ttft_seconds", "Time to the first shown token.", buckets=LATENCY_BUCKETS_S, registry=r
        )
        self.tpot = Histogram(
            "tiermesh_edge_tpot_seconds",
            "Time per output token after the first event.",
            buckets=TPOT_BUCKETS_S,
            registry=r,
        )
        self.running = Gauge("tiermesh_edge_running", "Generations on the edge model.", registry=r)
        self.waiting = Gauge("tiermesh_edge_waiting", "Requests that wait for a place.", registry=r)
        self.connected = Gauge("tiermesh_edge_upstream_connected", "1 while the next hop can be asked.", registry=r)
        self.inner_exit = Gauge(
            "tiermesh_edge_inner_exit_on", "1 while drafting from the inner exit pays.", ["sampling"], registry=r
        )
        self.inner_drafts = Counter(
            "tiermesh_edge_inner_drafts_total",
            "Tokens that the inner exit drafted, by what the full depth said of them.",
            ["sampling", "outcome"],
            registry=r,
        )
        self.acceptance = Gauge("tiermesh_edge_acceptance", "Share of checked drafts that stand.", registry=r)
        self.visit = Gauge("tiermesh_edge_visit_seconds", "Mean time of a visit without the cloud's work.", registry=r)

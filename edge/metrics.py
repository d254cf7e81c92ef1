"""What an edge node tells Prometheus. Labels are of fixed sets or of the configuration; never of requests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..common.telemetry import LATENCY_BUCKETS_S, TPOT_BUCKETS_S
from .drift import Standing
from .ledgers import Ledgers


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
            "Tokens shown alone, by whether the cloud would have taken them; as far as visits and audits told.",
            ["agrees"],
            registry=r,
        )
        self.alone_tokens = Counter(
            "tiermesh_edge_alone_tokens_total", "Tokens shown without asking, under a bound.", registry=r
        )
        self.withheld = Counter(
            "tiermesh_edge_withheld_total",
            "Units that the score trusted and that were asked about all the same, by why.",
            ["cause"],
            registry=r,
        )
        self.audits = Counter(
            "tiermesh_edge_audits_total",
            "Ends of answers that no visit labelled, by what became of their audit.",
            ["outcome"],
            registry=r,
        )
        self.audit_tokens = Counter(
            "tiermesh_edge_audit_tokens_total", "Prompt and answer tokens that the cloud read for audits.", registry=r
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
        self.calibrated = Gauge(
            "tiermesh_edge_calibrated",
            "1 while the calibration is that of the pair; at 0 every bounded unit asks.",
            registry=r,
        )
        self.inner_exit = Gauge(
            "tiermesh_edge_inner_exit_on", "1 while drafting from the inner exit pays.", ["sampling"], registry=r
        )
        self.inner_cost = Gauge(
            "tiermesh_edge_inner_exit_cost_ratio",
            "Expected time per token with drafts from the inner exit over that without, as measured on this machine.",
            ["sampling"],
            registry=r,
        )
        self.inner_drafts = Counter(
            "tiermesh_edge_inner_drafts_total",
            "Tokens that the inner exit drafted, by what the full depth said of them.",
            ["sampling", "outcome"],
            registry=r,
        )
        self.acceptance = Gauge("tiermesh_edge_acceptance", "Share of checked drafts that stand.", registry=r)
        self.visit = Gauge("tiermesh_edge_visit_seconds", "Mean time of a visit without the cloud's work.", registry=r)

    def watch(self, ledgers: Ledgers) -> None:
        """Shows the accounts at each scrape."""
        self.registry.register(_Accounts(ledgers))


class _Accounts(Collector):
    """Gauges by tenant, over all its bounds; tenants come from the configuration."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called in the thread of the HTTP port; reads only."""
        unlabelled: dict[str, float] = defaultdict(float)
        room: dict[str, float] = {}
        alarm: dict[str, float] = defaultdict(float)
        trusted: dict[str, float] = defaultdict(float)
        for place, account in self._ledgers.accounts():
            tenant, standing = place.tenant, account.watch.standing
            unlabelled[tenant] += account.unlabelled
            room[tenant] = min(account.room, room.get(tenant, account.room))
            alarm[tenant] = max(alarm[tenant], standing is Standing.DRIFTED)
            trusted[tenant] = max(trusted[tenant], standing is Standing.GOOD)
        yield _gauge("unlabelled_tokens", "Tokens shown alone that count as wrong for want of a label.", unlabelled)
        yield _gauge("ledger_room_tokens", "What may still go wrong under the tightest of the accounts.", room)
        yield _gauge("drift_alarm", "1 while labels say that the edge is wrong more often than agreed.", alarm)
        yield _gauge("trusted", "1 while units may be shown alone at all.", trusted)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing in advance: the names are fixed, the tenants are not."""
        return iter(())


def _gauge(name: str, words: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tiermesh_edge_{name}", words, labels=["tenant"])
    for tenant, value in values.items():
        family.add_metric([tenant], value)
    return family

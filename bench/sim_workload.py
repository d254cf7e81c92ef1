"""What is offered to the simulated mesh: who asks when, for how long an answer, and which workers die. Seeded, pure."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..router.jobs import TierRule
from .sim_workers import Service


@dataclass(frozen=True, slots=True)
class TierLoad:
    """A tier, and what its tenants ask for: log-normal lengths, cut at max_tokens."""

    rule: TierRule
    deadline_s: float
    work: float
    """Of the offered work, at the tenants' usual rates."""
    prompt_median: float
    prompt_sigma: float
    output_median: float
    output_sigma: float
    max_tokens: int

    def lengths(self, rng: random.Random) -> tuple[int, int]:
        """Of a prompt and its answer, in tokens."""
        prompt = rng.lognormvariate(math.log(self.prompt_median), self.prompt_sigma)
        output = rng.lognormvariate(math.log(self.output_median), self.output_sigma)
        return max(1, min(round(prompt), 8192)), max(1, min(round(output), self.max_tokens))


TIERS = (
    TierLoad(TierRule("realtime", 0.5, 0.20), 10.0, 0.2, 128, 0.6, 32, 0.5, 128),
    TierLoad(TierRule("standard", 2.0, 0.10), 30.0, 0.4, 512, 0.8, 128, 0.8, 512),
    TierLoad(TierRule("batch", 30.0, 0.05), 120.0, 0.4, 1024, 0.8, 192, 1.0, 1024),
)
TENANTS = 4
"""Of each tier, equal in weight."""


@dataclass(frozen=True, slots=True)
class Phases:
    """A Poisson process that changes between two rates, multiples of its usual one, after exponential times."""

    high: float
    high_s: float
    low: float
    low_s: float


STEADY = Phases(1.0, 1e9, 1.0, 1e9)
BURSTY = Phases(2.5, 10.0, 0.5, 30.0)
ON_OFF = Phases(4.0, 15.0, 0.0, 45.0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way of asking; each at several loads."""

    name: str
    phases: Phases = STEADY
    """Of every tenant, each for itself."""
    flood: float = 1.0
    """What standard-0 asks for, as a multiple of its usual rate, beyond the load that the scenario is named for."""
    on_off: bool = False
    """Whether standard-1 and batch-1 ask in bursts and else not at all."""
    dead: tuple[float, float] | None = None
    """When the first worker dies and when it is back, as shares of the time that is simulated."""


SCENARIOS = (
    Scenario("poisson"),
    Scenario("bursty", BURSTY),
    Scenario("flood", flood=5.0),
    Scenario("on_off", on_off=True),
    Scenario("death", dead=(0.4, 0.6)),
)


@dataclass(frozen=True, slots=True)
class Offer:
    """One request as it comes."""

    at: float
    tenant: str
    tier: int
    prompt: int
    output: int
    request: int = 0
    """The same whenever the same client comes again."""
    again: int = 0
    """How many times it was refused before."""


def offers(scenario: Scenario, load: float, service: Service, workers: int, horizon_s: float, seed: int) -> list[Offer]:
    """All requests of a run in the order of time. Load 1 is what all workers can do at their fullest batch."""
    rng = random.Random(f"{scenario.name} {load} {seed}")
    streams = []
    for index, tier in enumerate(TIERS):
        rate = load * workers * tier.work / mean_work(tier, service) / TENANTS
        for tenant in range(TENANTS):
            phases, factor = scenario.phases, 1.0
            if tier.rule.name == "standard" and tenant == 0:
                factor = scenario.flood
            if scenario.on_off and index > 0 and tenant == 1:
                phases = ON_OFF
            own = random.Random(rng.random())
            name = f"{tier.rule.name}-{tenant}"
            streams.append(_stream(Offer(0.0, name, index, 0, 0), tier, rate * factor, phases, horizon_s, own))
    merged = heapq.merge(*streams, key=lambda offer: offer.at)
    return [replace(offer, request=number) for number, offer in enumerate(merged, 1)]


def mean_work(tier: TierLoad, service: Service) -> float:
    """Worker seconds of one request at the fullest batch, the mean of many."""
    rng = random.Random(tier.rule.name)
    return sum(service.least_work_s(*tier.lengths(rng)) for _ in range(20_000)) / 20_000


def _stream(
    kind: Offer, tier: TierLoad, rate: float, phases: Phases, horizon_s: float, rng: random.Random
) -> Iterator[Offer]:
    high = rng.random() < phases.high_s / (phases.high_s + phases.low_s)
    begin = 0.0
    while begin < horizon_s:
        end = begin + rng.expovariate(1 / (phases.high_s if high else phases.low_s))
        now, factor = begin, phases.high if high else phases.low
        while factor and (now := now + rng.expovariate(rate * factor)) < min(end, horizon_s):
            prompt, output = tier.lengths(rng)
            yield replace(kind, at=now, prompt=prompt, output=output)
        begin, high = end, not high

"""What a simulated run comes to: attainment over what was offered, goodput, fairness, bounds, waste. Pure.

A request attains its tier when its first token comes within the TTFT budget and its last by the deadline. Refused
ones were offered too, so they count as misses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..router.estimates import actual_cost
from ..router.jobs import LARGEST_COST
from ..router.lags import lag_bound, wait_bound
from .sim_run import RULES, WINDOW_S, Outcome, Pool, Run
from .sim_workload import Offer

WARM_UP_S = 30.0
"""What came before is left out."""
_ANSWERS = 10.0
"""Mean answers per tenant in what is compared; fewer would measure how answers differ in size."""


def figures(run: Run, horizon_s: float) -> dict[str, Any]:
    """All of one run."""
    counted = [outcome for outcome in run.outcomes if outcome.offer.at >= WARM_UP_S]
    seconds = horizon_s - WARM_UP_S
    good = [outcome for outcome in counted if outcome.attained]
    tokens = sum(outcome.tokens for outcome in run.outcomes)
    wasted = sum(outcome.tokens for outcome in run.outcomes if not outcome.complete)
    return {
        "offered_per_s": len(counted) / seconds,
        "goodput_per_s": len(good) / seconds,
        "good_tokens_per_s": sum(outcome.offer.output for outcome in good) / seconds,
        "tiers": {tier.name: _tier(counted, index) for index, tier in enumerate(RULES)},
        "useful_share": _useful_shares(run.outcomes, horizon_s),
        "wasted_tokens": wasted / max(1, tokens),
        "jain": _jain(run, horizon_s),
        "largest_lag": run.largest_lag,
        "longest_wait": run.longest_wait,
    }


def bounds() -> dict[str, Any]:
    """What lag and waits are held to, in tokens; `router/lags.py` derives them."""
    return {
        "largest_lag": lag_bound(RULES, LARGEST_COST),
        "longest_wait": {tier.name: wait_bound(RULES, tier, LARGEST_COST) for tier in RULES},
    }


def fluid_bound(offers: Sequence[Offer], pool: Pool, horizon_s: float) -> float:
    """Requests per second that no schedule can bring home in time, whatever it knows.

    As if work could be cut and shifted at will: those that take the least worker seconds, until all that the workers
    have is used up, from the end of the warm-up until the last of those counted may still begin, and what the slots
    may hold then.
    """
    counted = [offer for offer in offers if offer.at >= WARM_UP_S]
    works = sorted(pool.service.least_work_s(offer.prompt, offer.output) for offer in counted)
    last_start_s = horizon_s + max(tier.ttft_s for tier in RULES) - WARM_UP_S
    dead_s = 0.0 if pool.dead is None else pool.dead[1] - pool.dead[0]
    left = pool.workers * last_start_s - dead_s + sum(works[-pool.workers * pool.service.slots :])
    fit = 0
    while fit < len(works) and works[fit] <= left:
        left -= works[fit]
        fit += 1
    return fit / (horizon_s - WARM_UP_S)


def realtime_work(offers: Sequence[Offer], pool: Pool) -> float:
    """Share of the offered work that is of the highest tier."""
    works = [0.0] * len(RULES)
    for offer in offers:
        works[offer.tier] += pool.service.least_work_s(offer.prompt, offer.output)
    return works[0] / sum(works)


def _tier(outcomes: Sequence[Outcome], tier: int) -> dict[str, float]:
    """Shares of what was offered; complete means by the deadline."""
    own = [outcome for outcome in outcomes if outcome.offer.tier == tier]
    count = max(1, len(own))
    return {
        "offered": len(own),
        "attained": sum(outcome.attained for outcome in own) / count,
        "ttft_in_time": sum(outcome.first_in_time for outcome in own) / count,
        "deadline_met": sum(outcome.complete for outcome in own) / count,
        "refused": sum(not outcome.ran for outcome in own) / count,
    }


def _useful_shares(outcomes: Sequence[Outcome], horizon_s: float) -> dict[str, float]:
    """Of the work that ended well while requests came: read tokens and twice the written ones, by tier."""
    ended = [o for o in outcomes if o.complete and o.ended is not None and WARM_UP_S <= o.ended <= horizon_s]
    work = [sum(actual_cost(o.offer.prompt, o.offer.output) for o in ended if o.offer.tier == t) for t in range(3)]
    return {tier.name: done / max(1.0, sum(work)) for tier, done in zip(RULES, work, strict=True)}


def _jain(run: Run, horizon_s: float) -> dict[str, Any]:
    """Index of what equal tenants of a tier were given while they waited all the time, at least two, by tier."""
    found: dict[str, Any] = {}
    for index, tier in enumerate(RULES):
        own = [o.offer for o in run.outcomes if o.offer.tier == index]
        mean = sum(actual_cost(offer.prompt, offer.output) for offer in own) / max(1, len(own))
        spans = _spans(run, tier.name, _ANSWERS * mean, horizon_s)
        indices = [sum(span) ** 2 / (len(span) * sum(value * value for value in span)) for span in spans]
        if indices:
            found[tier.name] = {"windows": len(indices), "mean": sum(indices) / len(indices), "least": min(indices)}
    return found


def _spans(run: Run, tier: str, enough: float, horizon_s: float) -> list[list[float]]:
    """Service of the tenants that waited, in spans of windows with the same ones, each with `enough` per tenant."""
    spans: list[list[float]] = []
    names: frozenset[str] = frozenset()
    service: dict[str, float] = {}
    for window in run.windows[: int(horizon_s / WINDOW_S)]:
        waited = frozenset(name for name in window.backlogged if name.rpartition("-")[0] == tier)
        if waited != names:
            names, service = waited, dict.fromkeys(sorted(waited), 0.0)
        for name in names:
            service[name] += window.service.get(name, 0.0)
        if len(names) > 1 and sum(service.values()) >= enough * len(names):
            spans.append(list(service.values()))
            service = dict.fromkeys(service, 0.0)
    return spans

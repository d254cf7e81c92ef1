"""What the answers over a wide area come to: times per way and kind of prompt, and how well the chooser chose. Pure.

`bounded` shall take at most 1.1 times as long as the fastest of the three ways, and `exact` as long as cloud only, the
other way to the same text. A ratio is that of the times of one whole round; the claim is the median of the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .kit import percentile

LIMIT = 1.1
"""How many times the best way's time the chosen one may take."""

KINDS = ("command", "code", "mix")


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. Seconds as the client saw them."""

    way: str
    """"cloud only", "exact" or "bounded"."""
    kind: str
    round: int
    """Negative: a warm-up."""
    ttft_s: float
    total_s: float
    tokens: int
    passes: float
    """Forward passes of the worker for it, an audit of it among them."""
    asks: int
    handed_over: bool


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """By kind: the figures of each way, and the ratios."""
    return {kind: _of_kind([s for s in samples if kind in (s.kind, "mix")]) for kind in KINDS}


def _of_kind(samples: Sequence[Sample]) -> dict[str, Any]:
    ways = {way: _way([s for s in samples if s.way == way]) for way in dict.fromkeys(s.way for s in samples)}
    rounds = sorted({s.round for s in samples})
    sums = {way: [sum(s.total_s for s in samples if (s.way, s.round) == (way, n)) for n in rounds] for way in ways}
    best = min(sums, key=lambda way: sum(sums[way]))
    return ways | {
        "best": best,
        "bounded_to_best": _ratio(sums["bounded"], sums[best]),
        "exact_to_cloud_only": _ratio(sums["exact"], sums["cloud only"]),
    }


def _way(samples: Sequence[Sample]) -> dict[str, Any]:
    tokens = sum(s.tokens for s in samples)
    return {
        "answers": len(samples),
        "tokens": tokens,
        "ttft_ms": _spread(s.ttft_s for s in samples),
        "ms_per_further_token": _spread((s.total_s - s.ttft_s) / (s.tokens - 1) for s in samples if s.tokens > 1),
        "total_ms": _spread(s.total_s for s in samples),
        "passes_per_token": sum(s.passes for s in samples) / max(1, tokens),
        "asks_per_answer": sum(s.asks for s in samples) / len(samples),
        "handed_over": sum(s.handed_over for s in samples) / len(samples),
    }


def _spread(seconds: Iterable[float]) -> dict[str, float]:
    """Milliseconds; nothing is trimmed, since losses are what is rare here."""
    values = [1000 * value for value in seconds] or [0.0]
    return {"mean": statistics.fmean(values), "p50": percentile(values, 0.5), "p95": percentile(values, 0.95)}


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    claim = statistics.median(ratios)
    return {"ratio": claim, "spread": [min(ratios), max(ratios)], "rounds": len(ratios), "met": claim <= LIMIT}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per condition and kind: mean whole times in milliseconds, passes per token, and the two ratios."""
    lines = [
        "RTT ms  loss  kind      cloud  exact  bounded |  TTFT           | passes per token | exact÷cloud bounded÷best"
    ]
    for row in rows:
        for kind in KINDS:
            of = row[kind]
            ways = [of[way] for way in ("cloud only", "exact", "bounded")]
            whole = "".join(f"{way['total_ms']['mean']:7.0f}" for way in ways)
            first = "".join(f"{way['ttft_ms']['mean']:5.0f}" for way in ways)
            passes = " ".join(f"{way['passes_per_token']:.3f}" for way in ways)
            exact, bounded = of["exact_to_cloud_only"], of["bounded_to_best"]
            marks = "  ".join(f"{r['ratio']:5.2f}{' ' if r['met'] else '!'}" for r in (exact, bounded))
            place = f"{1000 * row['rtt_s']:6.0f} {100 * row['loss']:4.0f}%"
            lines.append(f"{place}  {kind:<8}{whole}   |{first} |{passes} | {marks} ({of['best']})")
    return "\n".join(lines)

"""Sudden drift with real text: what the calibrated trust still shows, what the ledger lets go wrong, until when.

Streams of held-out commands change at once to German, shuffled words, prose or source code. Either the edge goes on
as calibrated, or it lies: it claims to be sure of everything from then on. Either a visit labels each answer when it
ends, or visits label what they read and audits some of the rest, as on a node. Nothing is handed over, and labels come
before the next answer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from tiermesh.common.errors import TiermeshError

from ..edge.calibration import Calibration
from ..edge.drift import Standing
from ..edge.ledger import ALLOWANCE
from ..edge.pairing import Pairing
from ..models import starter
from .drifted import commands, drifts
from .recorded import Pair
from .results import plot_lines, require_green, write_result
from .streams import Outcome, Plan, Stream

_DELTAS = (0.02, 0.05)
_EDGES = {"calibrated": False, "lying": True}
_LABELS = {"all": True, "audits": False}
_POINTS = 50
"""Of a line in the picture."""
_PLOTTED_AFTER = 200
"""Units after the change that the picture shows."""
_SLACK = 1e-6

Line = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class Fate:
    """One stream in figures; tokens and units are counted from the change on, unless it says otherwise."""

    good_at_onset: bool
    withdrawn: tuple[int, int, int] | None
    """Units decided, tokens shown alone, and wrong ones among them, until nothing was shown alone any more."""
    alarm: bool
    """Whether it was the alarm that withdrew the trust; else the account had no room left."""
    shown: int
    wrong: int
    slack: float
    """The least of δ·shown + B − wrong, by the truth, over the whole stream; below 0 where that was broken."""
    slack_granted: float
    """The same with the allowance that the account had then: B, and what proofs added since."""
    slack_counted: float
    """As `slack`, with wrong tokens as labels told them."""
    exceeded: bool
    """Whether the truth was ever above the account's own bound."""
    bound: float
    """The account's own at the end, over the whole stream…"""
    wrong_in_all: int
    """…and the truth then."""


def main(arguments: Sequence[str]) -> None:
    """Runs all streams, prints and writes the figures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench drift", description=__doc__)
    parser.add_argument("--before", type=int, default=200, help="commands before the change")
    parser.add_argument("--after", type=int, default=100, help="texts after it")
    parser.add_argument("--pool", type=int, default=150, help="different texts of each kind that streams draw from")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--model", type=Path, default=starter())
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    rows, lines = asyncio.run(_measure(given.model, given.before, given.after, given.pool, given.seeds))
    settings = {"before": given.before, "after": given.after, "pool": given.pool, "seeds": given.seeds}
    figures = settings | {"allowance": ALLOWANCE, "rows": rows}
    path = write_result("drift", figures, green=green)
    names = ("units since the stream began", "tokens that differ from the cloud's")
    plot_lines("drift", "An edge that lies from the change on: δ = 0.05, labels by visits and audits", names, lines)
    print(json.dumps(figures) if given.json else f"{_table(rows)}\nwritten to {path}")


async def _measure(
    model: Path, before: int, after: int, pool: int, seeds: int
) -> tuple[list[dict[str, Any]], dict[str, Line]]:
    """A row of figures for each condition, and the lines of the picture."""
    pair = Pair(model)
    rows, lines = list[dict[str, Any]](), dict[str, Line]()
    try:
        calibration = _calibration(pair)
        usual, drifted = commands(2 * pool), drifts(pool)
        conditions = list(itertools.product(drifted, _EDGES, _LABELS, _DELTAS))
        with Progress() as progress:
            bar = progress.add_task("streams", total=len(conditions) * seeds)
            for kind, edge, labels, delta in conditions:
                outcomes = []
                for seed in range(seeds):
                    rng = random.Random(f"{kind}/{seed}")
                    begun, changed = rng.sample(usual, before), rng.choices(drifted[kind], k=after)
                    plan = Plan(begun, changed, delta, _LABELS[labels], _EDGES[edge], seed)
                    outcomes.append(await Stream(pair, calibration, plan).run())
                    progress.advance(bar)
                condition = {"drift": kind, "edge": edge, "labels": labels, "delta": delta}
                rows.append(condition | _figures(outcomes, delta))
                if (edge, labels, delta) == ("lying", "audits", 0.05):
                    lines |= _lines(kind, outcomes[0], delta)
    finally:
        pair.close()
    return rows, lines


def _calibration(pair: Pair) -> Calibration:
    pairing = Pairing(pair.decoder.artifact.digests, pair.decoder.artifact.calibration)
    if fault := pairing.fault(pair.info):
        raise TiermeshError(fault)
    calibration = pairing.in_force(pair.info)
    assert calibration is not None
    return calibration


def fate_of(outcome: Outcome, delta: float) -> Fate:
    """What a stream's moments say."""
    moments, onset = outcome.moments, outcome.onset
    first = moments[onset - 1] if onset else None
    shown, wrong = (first.note.shown, first.wrong) if first else (0, 0)
    units = outcome.units[0]
    good = first is None or first.note.standing is Standing.GOOD
    lost = next((m for m in moments[onset:] if m.note.standing is not Standing.GOOD), None) if good else None
    last = moments[-1]
    return Fate(
        good_at_onset=good,
        withdrawn=(lost.units - units, lost.note.shown - shown, lost.wrong - wrong) if lost else None,
        alarm=lost is not None and lost.note.standing is Standing.DRIFTED,
        shown=last.note.shown - shown,
        wrong=last.wrong - wrong,
        slack=min(delta * m.note.shown + ALLOWANCE - m.wrong for m in moments),
        slack_granted=min(delta * m.note.shown + m.note.allowance - m.wrong for m in moments),
        slack_counted=min(delta * m.note.shown + ALLOWANCE - m.note.counted for m in moments),
        exceeded=any(m.wrong > m.note.bound + _SLACK for m in moments),
        bound=last.note.bound,
        wrong_in_all=last.wrong,
    )


def _figures(outcomes: Sequence[Outcome], delta: float) -> dict[str, Any]:
    """Of streams that differ in their seed alone: medians with the largest, and the worst slack."""
    fates = [fate_of(outcome, delta) for outcome in outcomes]
    withdrawn = [fate.withdrawn for fate in fates if fate.withdrawn]
    columns = list(zip(*withdrawn, strict=True)) or [(), (), ()]
    return {
        "trusted_by_score": [_share(outcomes, "trusted", drifted) for drifted in (0, 1)],
        "shown_alone": [_share(outcomes, "alone", drifted) for drifted in (0, 1)],
        "good_at_onset": sum(fate.good_at_onset for fate in fates),
        "withdrawn": len(withdrawn),
        "by_alarm": sum(fate.alarm for fate in fates),
        "units_until": _spread(columns[0]),
        "shown_until": _spread(columns[1]),
        "wrong_until": _spread(columns[2]),
        "shown_after": _spread([fate.shown for fate in fates]),
        "wrong_after": _spread([fate.wrong for fate in fates]),
        "least_slack": min(fate.slack for fate in fates),
        "least_slack_granted": min(fate.slack_granted for fate in fates),
        "least_slack_counted": min(fate.slack_counted for fate in fates),
        "bound_exceeded": sum(fate.exceeded for fate in fates),
        "bound_at_the_end": statistics.median(fate.bound for fate in fates),
        "wrong_at_the_end": statistics.median(fate.wrong_in_all for fate in fates),
        "audits": {name: sum(outcome.audits[name] for outcome in outcomes) for name in outcomes[0].audits},
    }


def _share(outcomes: Sequence[Outcome], name: str, drifted: int) -> float:
    """Of all units before (0) or after (1) the change."""
    part: float = sum(getattr(outcome, name)[drifted] for outcome in outcomes)
    return part / sum(outcome.units[drifted] for outcome in outcomes)


def _spread(values: Sequence[float]) -> list[float] | None:
    """Median and largest; None without values."""
    return [statistics.median(values), max(values)] if values else None


def _lines(kind: str, outcome: Outcome, delta: float) -> dict[str, Line]:
    """Wrong tokens of one stream, and what it was allowed, until a while after the change."""
    moments = [m for m in outcome.moments if m.units <= outcome.units[0] + _PLOTTED_AFTER]
    kept = [moments[round(i * (len(moments) - 1) / (_POINTS - 1))] for i in range(_POINTS)]
    units = [float(m.units) for m in kept]
    return {
        f"{kind}: wrong": (units, [float(m.wrong) for m in kept]),
        f"{kind}: δ·shown + B": (units, [delta * m.note.shown + ALLOWANCE for m in kept]),
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'drift':<9}{'edge':<11}{'labels':<7}{'δ':>5}{'trusted: before':>16}{'after':>8}{'withdrawn':>10}"
        f"{'by alarm':>9}{'units until':>12}{'shown until':>12}{'wrong until':>12}{'least slack':>12}{'exceeded':>9}"
    ]
    for row in rows:
        trusted, until = row["trusted_by_score"], [row[f"{name}_until"] for name in ("units", "shown", "wrong")]
        told = "".join(f"{'–' if each is None else f'{each[0]:.0f} ({each[1]:.0f})':>12}" for each in until)
        lines.append(
            f"{row['drift']:<9}{row['edge']:<11}{row['labels']:<7}{row['delta']:>5}{trusted[0]:>16.1%}{trusted[1]:>8.1%}"
            f"{row['withdrawn']:>10}{row['by_alarm']:>9}{told}{row['least_slack']:>12.1f}{row['bound_exceeded']:>9}"
        )
    return "\n".join(lines)

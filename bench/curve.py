"""Cost against quality: the score's choice of what to ask beside random asking, an oracle, and the cloud by itself.

Greedy and on policy, in this process: the deployed edge drafts, the float32 cloud answers asks (`curve_loop.py` has the
loop). No network, no ledger and no hand-over, which would move the costs by what the machine is doing. Quality is held
against the truth of commands and against the cloud; tokens and passes count the id that ends an answer, so that the
cloud alone takes one pass per token.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tiermesh.common.errors import ModelDirError

from ..common.model_dir import digests
from ..common.types import Sampling
from ..edge.calibration import Calibration, ClassCalibration, ScoreMap
from ..edge.calibration_file import read_calibration
from ..edge.report import DELTAS
from ..edge.units import Unit
from ..models import starter
from ..training.calibrate import starter_commands
from ..training.heldout import Prompt, command_prompts, read_heldout
from .curve_area import COSTS, QUALITIES, Floats, Sweeps, compare, shares
from .curve_loop import Drafter, Ids, Limits, Rank, Run, by_chance, by_score, by_truth, indifferent, run
from .curve_pair import Pair
from .curve_sources import Choices, Ngrams, Nobody, Remembered
from .results import RESULTS, plot_lines, require_green, write_result

_SEED = 1453
"""Of the commands: neither the calibration's nor those of heldout.jsonl."""
_LENGTHS = {"command": 96, "code": 48}
_POINTS = 16
"""Thresholds of a sweep between its ends."""
_SHARES = tuple(share / 10 for share in range(11))
"""Of units shown alone, at random."""
_SEEDS = 5
_REGRET = 0.3
"""A token below this share of the best one's probability is regretted."""
_ASK, _SHOW = math.inf, -math.inf
"""Thresholds of always and of never asking."""
_GROUPS = {"commands": ("command",), "code": ("code",), "mix": ("command", "code")}
_PLANES = (
    ("commands", "exact_match"), ("commands", "same_answer"),
    ("mix", "same_answer"), ("mix", "same_tokens"), ("mix", "without_regret"),
    ("code", "same_tokens"), ("code", "without_regret"),
)  # fmt: skip
_PICTURES = (("commands", "exact_match"), ("mix", "same_answer"), ("mix", "same_tokens"))


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt, with both models behind it."""

    prompt: Prompt
    ids: list[int]
    limits: Limits
    edge: Drafter
    cloud: Choices
    decode: Callable[[Ids], str]

    def run(self, rank: Rank, threshold: float, drafter: Drafter | None = None) -> Run:
        """The answer of one policy."""
        return run(drafter or self.edge, self.cloud, rank, threshold, len(self.ids), self.limits)


def main(arguments: Sequence[str]) -> None:
    """Runs all policies over the prompts, prints and writes figures and pictures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench curve", description=__doc__)
    parser.add_argument("--commands", type=int, default=300, help="held-out commands, the levels in turn")
    parser.add_argument("--code", type=int, default=60, help="openings of source files, of heldout.jsonl, at most")
    parser.add_argument("--model", type=Path, default=starter())
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    calibration = _calibration(given.model)
    measured = calibration.of(Sampling())
    if measured is None:
        raise ModelDirError("the calibration knows no greedy answers; run python -P -m tiermesh.training.calibrate")
    pair = Pair(given.model / "edge", given.model / "cloud")
    try:
        cases = [_case(pair, prompt) for prompt in _prompts(given.model, given.commands, given.code)]
        with Progress() as progress:
            bar = progress.add_task("prompts", total=2 * len(cases))
            counts = measure(cases, measured, calibration.epsilon, lambda: progress.advance(bar))
    finally:
        pair.close()
    figures = figures_of([case.prompt.kind for case in cases], counts)
    path = write_result("curve", figures, green=green)
    draw(figures)
    if given.json:
        print(json.dumps(figures))
    else:
        _show(figures)
        print(f"written to {path}")


def _calibration(model: Path) -> Calibration:
    """The deployed one. Raises ModelDirError where it does not belong to this pair."""
    calibration = read_calibration(model / "edge")
    if calibration is None or calibration.cloud_model != digests(model / "cloud").model:
        raise ModelDirError(f"{model} is not calibrated; run python -P -m tiermesh.training.calibrate")
    return calibration


def _prompts(model: Path, commands: int, code: int) -> list[Prompt]:
    """Commands that neither the calibration nor heldout.jsonl has, and code of the latter, which calibrated nothing."""
    kept = read_heldout(model / "heldout.jsonl")
    known = {prompt.prompt for prompt in [*kept, *starter_commands(model / "heldout.jsonl")]}
    drawn = [prompt for prompt in command_prompts(2 * commands, _SEED) if prompt.prompt not in known]
    return drawn[:commands] + [prompt for prompt in kept if prompt.kind == "code"][:code]


def _case(pair: Pair, prompt: Prompt) -> Case:
    ids = pair.decoder.text.encode_prompt(prompt.prompt)
    limits = Limits(_LENGTHS[prompt.kind], pair.decoder.end_ids)
    edge = Remembered(pair.edge(ids, limits))
    return Case(prompt, ids, limits, edge, pair.cloud(ids), pair.decoder.text.decode)


def measure(
    cases: Sequence[Case], measured: ClassCalibration, epsilon: float, advance: Callable[[], None] = lambda: None
) -> dict[str, Floats]:
    """Counts of each way, [points, prompts, FIELDS]. `advance` is called twice for each case."""
    seen: list[list[float]] = []
    told: list[list[float]] = []
    for case in cases:
        seen.append(_seen(case, by_score(measured.map)))
        told.append(_seen(case, by_truth(case.cloud, measured.map)))
        advance()
    bounds = (measured.threshold(delta, epsilon) for delta in DELTAS)
    thresholds = {
        "score": thresholds_of(seen),
        "oracle": thresholds_of(told, 2.0),
        "deployed": [_ASK if bound is None else bound for bound in bounds],
    }
    counts: list[dict[str, list[list[float]]]] = []
    for number, case in enumerate(cases):
        counts.append(_ways(case, number, measured.map, thresholds))
        advance()
    whole = {way: np.array([each[way] for each in counts]).swapaxes(0, 1) for way in counts[0]}
    return {"random": np.mean([whole.pop(f"random {seed}") for seed in range(_SEEDS)], axis=0)} | whole


def _ways(
    case: Case, number: int, scores: ScoreMap, thresholds: Mapping[str, Sequence[float]]
) -> dict[str, list[list[float]]]:
    """One prompt's counts, [points, FIELDS] for each way."""
    text = case.run(indifferent, _ASK).ids

    def told(rank: Rank, at: Sequence[float], drafter: Drafter | None = None) -> list[list[float]]:
        return [_tally(case, case.run(rank, threshold, drafter), text) for threshold in at]

    at_random = [_ASK, *(1.0 - share for share in _SHARES[1:-1]), _SHOW]
    return {
        "score": told(by_score(scores), thresholds["score"]),
        "oracle": told(by_truth(case.cloud, scores), thresholds["oracle"]),
        "deployed": told(by_score(scores), thresholds["deployed"]),
        "edge only": told(indifferent, [_SHOW]),
        "always ask": told(indifferent, [_ASK]),
        "cloud with n-gram drafts": told(indifferent, [_ASK], Ngrams(case.ids, case.limits)),
        "cloud only": told(indifferent, [_ASK], Nobody()),
    } | {f"random {seed}": told(by_chance(f"{seed} {number}"), at_random) for seed in range(_SEEDS)}


def _seen(case: Case, rank: Rank) -> list[float]:
    """Ranks of all units of one prompt where the edge is always asked about, and where it never is."""
    found: list[float] = []

    def noting(answer: Ids, unit: Unit) -> float:
        found.append(rank(answer, unit))
        return 0.0

    case.run(noting, _ASK)
    case.run(noting, _SHOW)
    return found


def thresholds_of(ranks: Sequence[Sequence[float]], *wanted: float) -> list[float]:
    """From always to never asking: quantiles of the ranks that were seen, at equal steps, and those wanted besides."""
    quantiles = np.quantile(np.concatenate(ranks), np.linspace(1.0, 0.0, _POINTS), method="nearest")
    return [_ASK, *sorted({*quantiles.tolist(), *wanted}, reverse=True), _SHOW]


def _tally(case: Case, done: Run, text: Ids) -> list[float]:
    """One answer as FIELDS; `text` is the cloud's own."""
    told = case.cloud.after((), done.ids)
    right = case.prompt.truth is not None and case.decode(done.ids) == case.prompt.truth
    return [
        1, len(done.ids), done.passes, done.positions, done.units, done.alone, not done.passes,
        right, done.ids == text,
        sum(token == choice for token, choice in zip(done.ids, told, strict=False)),
        sum(share >= _REGRET for share in case.cloud.shares(done.ids)),
    ]  # fmt: skip


def figures_of(kinds: Sequence[str], counts: Mapping[str, Floats]) -> dict[str, object]:
    """What is written: points by group and way, and the comparison of the curves in each plane."""
    groups = {name: np.isin(kinds, members) for name, members in _GROUPS.items()}
    groups = {name: chosen for name, chosen in groups.items() if chosen.any()}
    sweeps = Sweeps(counts["score"], counts["random"], counts["oracle"])
    return {
        "prompts": {name: int(chosen.sum()) for name, chosen in groups.items()},
        "random_seeds": _SEEDS,
        "deltas_of_deployed": list(DELTAS),
        "points": {
            group: {way: [_point(group, row) for row in told[:, chosen].sum(1)] for way, told in counts.items()}
            for group, chosen in groups.items()
        },
        "planes": {
            f"{group}: {quality} by {cost}": compare(sweeps.of(groups[group]), quality, cost)
            for group, quality in _PLANES
            if group in groups
            for cost in COSTS
        },
    }


def _point(group: str, sums: Floats) -> dict[str, float]:
    """Of one policy at one threshold; only commands have a truth."""
    named = {f"{name}_per_token": ratio for name, ratio in COSTS.items()}
    named |= {"units_alone": ("alone", "units"), "unvisited": ("unvisited", "answers")}
    named |= {name: ratio for name, ratio in QUALITIES.items() if name != "exact_match" or group == "commands"}
    return {name: float(shares(sums, ratio)) for name, ratio in named.items()}


def draw(figures: Mapping[str, object], folder: Path = RESULTS) -> None:
    """Quality against either cost, one picture each."""
    points = figures["points"]
    assert isinstance(points, dict)
    for group, quality in _PICTURES:
        if group not in points:
            continue
        for cost in COSTS:
            ways = {
                way: ([row[f"{cost}_per_token"] for row in rows], [row[quality] for row in rows])
                for way, rows in points[group].items()
            }
            lines = {way: ways[way] for way in ("score", "random", "oracle")}
            marks = {way: drawn for way, drawn in ways.items() if way not in lines and way != "always ask"}
            title = f"{group}: {quality.replace('_', ' ')} against cloud {cost} per token"
            names = f"cloud {cost} per token", quality.replace("_", " ")
            plot_lines(f"curve_{group}_{quality}_{cost}", title, names, lines, folder, marks)


def _show(figures: Mapping[str, object]) -> None:
    planes, points = figures["planes"], figures["points"]
    assert isinstance(planes, dict)
    assert isinstance(points, dict)
    table = Table("plane", "area over random", "of the oracle's", "above random at", "surely at", title="the score")
    for name, told in planes.items():
        area, grid = told["area"], told["grid"]
        size, share = "–", "–"
        if area:
            low, high = area["interval"]
            size = f"{area['score_over_random']:.3f} ({low:.3f} to {high:.3f})"
            share = f"{area['share_of_oracle']:.0%}" if area["share_of_oracle"] is not None else "–"
        above, surely = sum(row["above"] > 0 for row in grid), told["places_with_interval_above_zero"]
        table.add_row(name, size, share, f"{above}/{len(grid)}", f"{surely}/{len(grid)}")
    console = Console(width=120)
    console.print(table)
    for group, ways in points.items():
        columns = list(ways["edge only"][0])
        rows = Table("way", *(column.replace("_", " ") for column in columns), title=group)
        for way in ("edge only", "deployed", "always ask", "cloud with n-gram drafts", "cloud only"):
            for index, row in enumerate(ways[way]):
                bound = f", δ = {DELTAS[index]:g}" if way == "deployed" else ""
                rows.add_row(way + bound, *(f"{row[column]:.3f}" for column in columns))
        console.print(rows)

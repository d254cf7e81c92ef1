"""Whether the stated bound holds: calibrations on resampled prompts, judged on the prompts that were left out.

A pool of held-out prompts is labelled once, greedy and at T = 0.8. Each resample calibrates on part of the pool and
counts, on the rest, the share of units shown alone that are not the cloud's, averaged over prompts. Beside it runs what
must fail: the loosest threshold whose counted share keeps the bound on the very prompts that it was chosen on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from transformers import LlamaForCausalLM

from ..edge.calibration import SamplingClass
from ..edge.fitting import Scored, candidates, fit_map, scored, split, walk
from ..edge.labelling import Units
from ..edge.measuring import Decoder, label_class
from ..edge.report import DELTAS
from ..edge.risk import loosest
from ..models import starter
from ..training.calibrate import TorchLabeller
from ..training.corpus import read_corpus
from ..training.heldout import code_prompts, command_prompts, own_sources
from .results import RESULTS, plot_lines, require_green, write_result

EPSILON = 0.05
_SAMPLINGS = (SamplingClass("greedy", 0.0, 0.0), SamplingClass("T=0.8", 0.79999, 0.8))
_MAX_TOKENS = 96
_SEED = 4711
"""Of the pool: other prompts than those of the starter's own calibration."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One threshold of one resample, on the prompts that were left out."""

    risk: float
    """Share of the units shown alone that are not the cloud's, averaged over prompts; 0 when none was shown."""
    prompts: int
    """That had a unit to show."""
    units: int
    share: float
    """Of all units, shown alone."""


def main(arguments: Sequence[str]) -> None:
    """Labels the pool, resamples, prints and writes the shares of resamples in which the bound did not hold."""
    parser = argparse.ArgumentParser(prog="tiermesh bench trust", description=__doc__)
    parser.add_argument("--commands", type=int, default=2400)
    parser.add_argument("--code", type=int, default=650, help="openings of the corpus' held-out files and of our own")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--calibrated", type=float, default=0.6, help="share of the pool that calibrates")
    parser.add_argument("--model", type=Path, default=starter())
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    prompts = _pool(given.commands, given.code)
    figures: dict[str, object] = {"prompts": len(prompts), "resamples": given.resamples, "epsilon": EPSILON}
    for name, labelled in asyncio.run(_label(given.model, prompts)).items():
        figures[name] = _bounds(labelled, given.resamples, round(given.calibrated * len(labelled)))
    path = write_result("trust", figures, green=green)
    draw(figures)
    print(json.dumps(figures) if given.json else f"{_table(figures)}\nwritten to {path}")


def _pool(commands: int, code: int) -> list[str]:
    """Enough code that showing everything breaks every bound: with 8 % of it, δ = 0.1 could not be violated at all."""
    drawn = command_prompts(commands, _SEED) + code_prompts((*read_corpus().heldout, *own_sources()), code, _SEED)
    return [prompt.prompt for prompt in drawn]


async def _label(model: Path, prompts: Sequence[str]) -> dict[str, list[Units]]:
    """The units of each prompt, by sampling."""
    torch.set_num_threads(1)  # several answers are labelled side by side, each in a thread
    cloud = LlamaForCausalLM.from_pretrained(model / "cloud", dtype=torch.float32)
    decoder, labeller = Decoder(model / "edge"), TorchLabeller(cloud)
    try:
        with Progress() as progress:
            bar = progress.add_task("labels", total=len(_SAMPLINGS) * len(prompts))
            return {
                sampling.name: await label_class(
                    decoder, labeller, prompts, sampling, _MAX_TOKENS, lambda: progress.advance(bar)
                )
                for sampling in _SAMPLINGS
            }
    finally:
        decoder.close()


def _bounds(labelled: Sequence[Units], resamples: int, calibrated: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    found: dict[str, dict[float, list[Outcome]]] = {name: {d: [] for d in DELTAS} for name in ("tested", "counted")}
    for _ in range(resamples):
        order = rng.permutation(len(labelled))
        chosen, rest = ([labelled[i] for i in part] for part in (order[:calibrated], order[calibrated:]))
        fit_part, test_part = split(chosen)
        fitted = fit_map(fit_part)
        fit, test, left = (scored(fitted, part) for part in (fit_part, test_part, rest))
        steps = walk(fit, test, rng)
        for delta in DELTAS:
            found["tested"][delta].append(_judge(left, loosest(steps, len(test_part), delta, EPSILON)))
            found["counted"][delta].append(_judge(left, _counted(test, delta)))
    return {
        "units": sum(map(len, labelled)),
        "same_share": statistics.mean(unit.same for units in labelled for unit in units),
        "calibration_prompts": calibrated,
        "bounds": {
            str(delta): {name: _summary(outcomes[delta], delta) for name, outcomes in found.items()} for delta in DELTAS
        },
    }


def _counted(test: Scored, delta: float) -> float | None:
    """The negative control: the loosest threshold at which the counted share is within the bound."""
    within = [threshold for threshold in candidates(test.scores) if _judge(test, float(threshold)).risk <= delta]
    return float(within[-1]) if within else None


def _judge(units: Scored, threshold: float | None) -> Outcome:
    if threshold is None:
        return Outcome(0.0, 0, 0, 0.0)
    shown = units.scores >= threshold
    if not shown.any():
        return Outcome(0.0, 0, 0, 0.0)
    each = np.bincount(units.prompts[shown])
    wrong = np.bincount(units.prompts[shown], weights=~units.same[shown])
    having = each > 0
    risk = float((wrong[having] / each[having]).mean())
    return Outcome(risk, int(having.sum()), int(shown.sum()), float(shown.mean()))


def _summary(outcomes: Sequence[Outcome], delta: float) -> dict[str, float]:
    """Over all resamples; one that trusted nothing violates nothing, and is counted."""
    return {
        "violated": statistics.mean(each.risk > delta for each in outcomes),
        "trusted_nothing": statistics.mean(each.units == 0 for each in outcomes),
        "mean_risk": statistics.mean(each.risk for each in outcomes),
        "share_of_units_alone": statistics.mean(each.share for each in outcomes),
        "median_units_judged": statistics.median(each.units for each in outcomes),
        "median_prompts_judged": statistics.median(each.prompts for each in outcomes),
    }


def draw(figures: Mapping[str, object], folder: Path = RESULTS) -> None:
    """How often each bound was broken, by the tested thresholds and by the counted ones, against what is allowed."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for name in (sampling.name for sampling in _SAMPLINGS):
        told = figures[name]
        assert isinstance(told, dict)
        for way, word in (("tested", "tested"), ("counted", "counted only")):
            shares = [row[way]["violated"] for row in told["bounds"].values()]
            lines[f"{name}, {word}"] = (list(DELTAS), shares)
    lines["ε"] = (list(DELTAS), [EPSILON] * len(DELTAS))
    plot_lines(
        "trust", "How often a calibration broke its bound on prompts it never saw", ("δ", "share"), lines, folder
    )


def _table(figures: Mapping[str, object]) -> str:
    lines = [f"{'':<10}{'δ':>6}{'violated':>10}{'alone':>8}{'risk':>8}{'control violated':>18}{'units':>8}"]
    for name in (sampling.name for sampling in _SAMPLINGS):
        told = figures[name]
        assert isinstance(told, dict)
        for delta, row in told["bounds"].items():
            tested, counted = row["tested"], row["counted"]
            lines.append(
                f"{name:<10}{delta:>6}{tested['violated']:>10.1%}{tested['share_of_units_alone']:>8.1%}"
                f"{tested['mean_risk']:>8.2%}{counted['violated']:>18.1%}{tested['median_units_judged']:>8.0f}"
            )
    return "\n".join(lines)

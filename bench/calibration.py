"""How good the starter's calibration is on prompts that it never saw: reliability, and risk against coverage."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiermesh.common.errors import ModelDirError

from ..edge.calibration import Calibration, ClassCalibration, sigmoid
from ..edge.calibration_file import read_calibration
from ..edge.features import FEATURES
from ..edge.fitting import Scored, calibration_error, log_loss, reliability, scored
from ..edge.labelling import Units
from ..edge.measuring import Decoder, label_class
from ..edge.report import DELTAS, bound_facts
from ..models import starter
from .prompts import heldout
from .results import RESULTS, plot_lines, require_green, write_result

Curve = tuple[Sequence[float], Sequence[float]]
_POINTS = 60


def main(arguments: Sequence[str]) -> None:
    """Labels heldout.jsonl with the cloud model in this process, and writes figures and pictures."""
    parser = argparse.ArgumentParser(prog="bench calibration", description=__doc__)
    parser.add_argument("--prompts", type=int, default=360, help="of heldout.jsonl, at most")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--force", action="store_true", help="measure a tree whose tests weren't green, and say so")
    options = parser.parse_args(arguments)
    green = require_green(options.force)
    calibration = read_calibration(starter() / "edge")
    if calibration is None:
        raise ModelDirError("the starter is not calibrated; run python -P -m tiermesh.training.calibrate")
    labelled = _label(calibration, heldout()[: options.prompts], options.max_tokens)
    for measured in calibration.classes:
        plot_calibration(measured, labelled[measured.sampling.name])
    figures = {each.sampling.name: _figures(calibration, each, labelled) for each in calibration.classes}
    print(write_result("calibration", figures, green=green))


def plot_calibration(measured: ClassCalibration, prompts: Sequence[Units], folder: Path = RESULTS) -> list[Path]:
    """Two pictures of one class: what the score says beside what came, and the risk at each share of units alone."""
    units = scored(measured.map, prompts)
    name = f"calibration_{measured.sampling.name.replace('<=', '_to_')}"
    bins = reliability(units.scores, units.same)
    lines = {
        "measured": ([score for score, _, _ in bins], [outcome for _, outcome, _ in bins]),
        "perfect": ([0.0, 1.0], [0.0, 1.0]),
    }
    title = f"{measured.sampling.name}: expected calibration error {calibration_error(units.scores, units.same):.3f}"
    axes = "score", "share that is the cloud's"
    curves = risk_coverage(units, product_scores(prompts))
    return [
        plot_lines(f"{name}_reliability", title, axes, lines, folder),
        plot_lines(
            f"{name}_risk", f"{measured.sampling.name}: units shown alone",
            ("share of units", "share that differs, averaged over prompts"), curves, folder,
        ),
    ]  # fmt: skip


def risk_coverage(units: Scored, product: npt.NDArray[np.float64]) -> dict[str, Curve]:
    """Curves of (share of units shown alone, their risk): by score, by the plain product, at random, by an oracle."""
    oracle = units.same + 1e-9 * units.scores
    chance = np.random.default_rng(0).random(len(units.scores))
    ranked = {"calibrated score": units.scores, "product of probabilities": product, "random": chance, "oracle": oracle}
    return {name: _curve(units, values) for name, values in ranked.items()}


def product_scores(prompts: Sequence[Units]) -> npt.NDArray[np.float64]:
    """The model's own probability that all ids of a unit are right, for every unit."""
    place = FEATURES.index("product")
    return np.array([sigmoid(unit.features[place]) for prompt in prompts for unit in prompt])


def _curve(units: Scored, values: npt.NDArray[np.float64]) -> Curve:
    shares = np.linspace(0.02, 1.0, _POINTS)
    thresholds = np.quantile(values, 1.0 - shares)
    return shares.tolist(), [_risk(units, values >= threshold) for threshold in thresholds]


def _risk(units: Scored, alone: npt.NDArray[np.bool_]) -> float:
    """The stated one: the share of the units shown alone that differ, averaged over prompts that have one."""
    counts = np.bincount(units.prompts[alone])
    wrong = np.bincount(units.prompts[alone], ~units.same[alone])
    return float((wrong[counts > 0] / counts[counts > 0]).mean())


def _label(calibration: Calibration, prompts: Sequence[str], max_tokens: int) -> dict[str, list[Units]]:
    import torch
    from transformers import LlamaForCausalLM

    from ..training.calibrate import TorchLabeller

    labeller = TorchLabeller(LlamaForCausalLM.from_pretrained(starter() / "cloud", dtype=torch.float32))
    decoder = Decoder(starter() / "edge")
    try:
        return {
            each.sampling.name: asyncio.run(
                label_class(decoder, labeller, prompts, each.sampling, max_tokens, lambda: None)
            )
            for each in calibration.classes
        }
    finally:
        decoder.close()


def _figures(
    calibration: Calibration, measured: ClassCalibration, labelled: Mapping[str, Sequence[Units]]
) -> dict[str, object]:
    prompts = labelled[measured.sampling.name]
    units, product = scored(measured.map, prompts), product_scores(prompts)
    return {
        "prompts": len(prompts),
        "units": len(units.scores),
        "ece": calibration_error(units.scores, units.same),
        "ece_of_the_product": calibration_error(product, units.same),
        "log_loss_nats": log_loss(units.scores, units.same),
        "log_loss_of_the_product_nats": log_loss(product, units.same),
        "bounds": [bound_facts(measured, calibration.epsilon, delta, prompts) for delta in DELTAS],
        "risk_coverage": risk_coverage(units, product),
    }

"""What a calibration says, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .calibration import Calibration, ClassCalibration
from .fitting import split
from .labelling import Units

DELTAS = (0.01, 0.02, 0.05, 0.1)
"""Bounds that are shown; a calibration serves any."""


def facts(calibration: Calibration, labelled: Mapping[str, Sequence[Units]]) -> dict[str, Any]:
    """One object: per class what was fitted, and per bound what it lets through of the test's prompts."""
    return {
        "epsilon": calibration.epsilon,
        "prompts": calibration.prompts,
        "edge_model": calibration.edge.model,
        "cloud_model": calibration.cloud_model,
        "classes": [
            {
                "class": found.sampling.name,
                "fitted_prompts": found.fitted,
                "tested_prompts": found.tested,
                "isotonic": bool(found.map.knots),
                "log_loss": found.log_loss,
                "ece": found.ece,
                "bounds": [
                    bound_facts(found, calibration.epsilon, delta, split(labelled[found.sampling.name])[1])
                    for delta in DELTAS
                ],
            }
            for found in calibration.classes
        ],
    }


def bound_facts(found: ClassCalibration, epsilon: float, delta: float, prompts: Sequence[Units]) -> dict[str, Any]:
    """What a bound lets through of these prompts' units. `share_wrong` is that of the units shown alone, averaged over
    the prompts that have one."""
    threshold = found.threshold(delta, epsilon)
    units = [unit for prompt in prompts for unit in prompt]
    passed = [
        [unit for unit in prompt if threshold is not None and found.map.score(unit.features) >= threshold]
        for prompt in prompts
    ]
    alone = [unit for prompt in passed for unit in prompt]
    wrong = [sum(not unit.same for unit in prompt) / len(prompt) for prompt in passed if prompt]
    return {
        "delta": delta,
        "threshold": threshold,
        "units": len(units),
        "units_alone": len(alone),
        "share_units_alone": len(alone) / len(units),
        "share_tokens_alone": sum(unit.tokens for unit in alone) / sum(unit.tokens for unit in units),
        "share_wrong": sum(wrong) / len(wrong) if wrong else None,
    }


def print_report(calibration: Calibration, labelled: Mapping[str, Sequence[Units]]) -> None:
    """The same as a table."""
    told = facts(calibration, labelled)
    table = Table(
        "class", "δ", "threshold", "units", "alone", "tokens alone", "wrong", "ECE",
        title=f"{told['prompts']} prompts, ε = {told['epsilon']:g}",
    )  # fmt: skip
    for row in told["classes"]:
        for bound in row["bounds"]:
            nothing = bound["threshold"] is None
            table.add_row(
                row["class"],
                f"{bound['delta']:.0%}",
                "nothing is trusted" if nothing else f"{bound['threshold']:.4f}",
                str(bound["units"]),
                f"{bound['share_units_alone']:.1%}",
                f"{bound['share_tokens_alone']:.1%}",
                "" if nothing else f"{bound['share_wrong']:.2%}",
                f"{row['ece']:.4f}",
            )
    Console().print(table)

"""Risk against coverage: the oracle is the floor, chance the ceiling, and pictures come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiermesh.bench.calibration import plot_calibration, product_scores, risk_coverage
from tiermesh.edge.calibration import CLASSES
from tiermesh.edge.features import FEATURES
from tiermesh.edge.fitting import fit_class, scored
from tiermesh.edge.labelling import Labelled, Units


@pytest.fixture(scope="module")
def prompts() -> list[Units]:
    """Units whose first feature tells how likely they are right."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(600):
        values = rng.normal(size=(rng.integers(1, 4), len(FEATURES)))
        drawn.append(tuple(Labelled(tuple(v), 4, bool(rng.random() < 1 / (1 + np.exp(-1 - 2 * v[1])))) for v in values))
    return drawn


def test_a_score_that_knows_lies_between_the_oracle_and_chance(prompts: list[Units]) -> None:
    measured = fit_class(CLASSES[0], prompts, seed=0)
    curves = risk_coverage(scored(measured.map, prompts), product_scores(prompts))
    risk = {name: np.array(y) for name, (_, y) in curves.items()}
    middle = slice(5, 45)
    assert (risk["oracle"] <= risk["calibrated score"] + 1e-12).all()
    assert (risk["calibrated score"][middle] < risk["random"][middle]).all()
    assert (risk["calibrated score"][middle] < risk["product of probabilities"][middle]).all(), "it tells nothing here"
    everything = [y[-1] for _, y in curves.values()]
    assert everything == pytest.approx([everything[0]] * 4)


def test_pictures_are_written(prompts: list[Units], tmp_path: Path) -> None:
    paths = plot_calibration(fit_class(CLASSES[2], prompts, seed=0), prompts, tmp_path)
    assert [path.name for path in paths] == [
        "calibration_T_to_0.9_reliability.png",
        "calibration_T_to_0.9_risk.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)

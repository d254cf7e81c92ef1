"""An edge directory made from a tiny random model, once per run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def edge_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_model

    root = tmp_path_factory.mktemp("edge_model")
    export_edge(write_random_model(root / "hf", hidden=64, max_length=256), root / "edge", bits=8)
    return root / "edge"

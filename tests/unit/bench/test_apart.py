"""A peer in a process of its own, and one that can't even begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiermesh.bench.apart import Apart
from tiermesh.bench.engine_served import Served, uniform
from tiermesh.cloud.engine import EngineConfig
from tiermesh.common.errors import TiermeshError
from tiermesh.models import starter


def test_a_peer_gives_its_figure_and_ends_with_its_context() -> None:
    with Apart(Served.model, starter() / "cloud", EngineConfig(slots=2), 256) as peer:
        assert peer.rate(uniform(2, (8, 8), (4, 4))) > 0
    assert peer._child.exitcode == 0


def test_a_peer_that_fails_is_an_error_and_no_hang(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Apart(Served.model, tmp_path / "nowhere", EngineConfig(), 256) as peer, pytest.raises(TiermeshError):
        peer.rate([])
    assert "nowhere" in capfd.readouterr().err

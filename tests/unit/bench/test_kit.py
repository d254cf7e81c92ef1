from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.bench.kit import paired_ratio, percentile, percentiles, trimmed
from tiermesh.bench.results import plot_bars, plot_lines, require_green, write_result
from tiermesh.bench.tree import tree_files, tree_hash
from tiermesh.common.errors import TiermeshError

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(numbers, st.floats(0, 1))
def test_percentiles_are_those_of_numpy(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-6)


def test_trimming_cuts_both_ends() -> None:
    assert trimmed(list(range(20))) == list(range(2, 18))
    assert percentiles([1000.0, *[1.0] * 8, 1000.0])["p99"] == 1.0


def test_pairs_run_in_turn_and_give_the_median() -> None:
    order: list[str] = []
    ours, theirs = iter([9, 2, 4, 6, 8, 30]), iter([9, 1, 2, 3, 4, 1])

    def run_ours() -> float:
        order.append("ours")
        return next(ours)

    def run_theirs() -> float:
        order.append("theirs")
        return next(theirs)

    result = paired_ratio(run_ours, run_theirs, pairs=5)
    assert (result.median, result.spread) == (2.0, (2.0, 30.0))
    assert order[2:8] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        paired_ratio(lambda: 1.0, lambda: 1.0, pairs=3)


def test_the_hash_follows_contents_and_names_but_not_results(tmp_path: Path) -> None:
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "a.py").write_text("1")
    before = tree_hash(tmp_path)
    (tmp_path / "bench" / "results" / "x.json").write_text("{}")
    assert tree_hash(tmp_path) == before
    (tmp_path / "a.py").write_text("2")
    changed = tree_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, changed, tree_hash(tmp_path)}) == 3


def test_the_list_leaves_out_what_is_built(tmp_path: Path) -> None:
    for name in ("a.py", "build/b.py", ".venv/c.py", "x/__pycache__/d.pyc", "x/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert tree_files(tmp_path) == ["a.py", "x/e.py"]


def test_only_a_tested_tree_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    with pytest.raises(TiermeshError, match="make test"):
        require_green(False, tmp_path)
    assert not require_green(True, tmp_path)
    (tmp_path / ".green").write_text(tree_hash(tmp_path) + "\n")
    assert require_green(False, tmp_path)
    (tmp_path / "a.py").write_text("2")
    with pytest.raises(TiermeshError):
        require_green(False, tmp_path)


def test_results_carry_their_environment(tmp_path: Path) -> None:
    record = json.loads(write_result("some", {"x": 1}, green=False, folder=tmp_path).read_text())
    assert record["figures"] == {"x": 1}
    assert record["tested_tree"] is False
    assert record["environment"]["cores"] >= 1
    assert record["environment"]["packages"]["grpcio"]


def test_pictures_are_drawn(tmp_path: Path) -> None:
    bars = plot_bars("bars", "title", "ms", {"one": 1.0, "two": 2.0}, tmp_path)
    lines = plot_lines("lines", "title", ("x", "y"), {"one": ([1, 2], [3, 4])}, tmp_path)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (bars, lines))

"""Where figures go: JSON and pictures under bench/results/, from a tested tree alone."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from tiermesh.common.errors import TiermeshError

from .environment import environment
from .tree import ROOT, tree_hash

RESULTS = ROOT / "bench" / "results"


def require_green(force: bool, root: Path = ROOT) -> bool:
    """Whether these very files passed `make test`; raises TiermeshError when not, unless forced."""
    stamp = root / ".green"
    green = stamp.is_file() and stamp.read_text().strip() == tree_hash(root)
    if not green and not force:
        raise TiermeshError("these files were not tested as they are: run make test first, or give --force")
    return green


def write_result(name: str, figures: Mapping[str, object], *, green: bool, folder: Path = RESULTS) -> Path:
    """Writes `name`.json: the figures, the command, the environment, and whether the tree was tested."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = {
        "name": name,
        "command": f"python -P -m tiermesh.bench {name} {shlex.join(sys.argv[2:])}".rstrip(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tested_tree": green,
        "environment": environment(),
        "figures": dict(figures),
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def plot_bars(name: str, title: str, unit: str, bars: Mapping[str, float], folder: Path = RESULTS) -> Path:
    """Writes `name`.png: one horizontal bar per entry, first on top, its value beside it."""
    figure, axes = _axes(title)
    labels = list(bars)[::-1]
    drawn = axes.barh(labels, [bars[label] for label in labels], color="#3b7dd8")
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.set_xlabel(unit)
    axes.margins(x=0.15)
    return _save(figure, folder / f"{name}.png")


def plot_lines(
    name: str,
    title: str,
    axes_names: tuple[str, str],
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    folder: Path = RESULTS,
    marks: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Path:
    """Writes `name`.png: one line with dots per entry, given as (x values, y values); `marks` are single points."""
    figure, axes = _axes(title)
    for label, (x, y) in lines.items():
        axes.plot(x, y, marker="o", markersize=3, label=label)
    for shape, (label, (x, y)) in zip(cycle("sD^v*P"), (marks or {}).items(), strict=False):
        axes.plot(x, y, shape, markersize=7, label=label)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.legend(frameon=False)
    return _save(figure, folder / f"{name}.png")


def _axes(title: str) -> tuple[Any, Any]:
    """A figure without a window; matplotlib is imported here, since only pictures need it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path

"""How far the loading of a model has come: a bar where somebody watches, else a log event every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ..common.clock import Clock, MonotonicClock
from ..common.telemetry import get_logger
from .checkpoint import Report

_EVERY_S = 5.0
"""Between two events."""


@contextmanager
def load_report(name: str, clock: Clock | None = None) -> Iterator[Report]:
    """What hears of every tensor read of model `name`; logs at the end how long it took."""
    clock = clock or MonotonicClock()
    began = clock.now()
    if sys.stderr.isatty():
        with _bar(name) as report:
            yield report
    else:
        yield _events(name, clock)
    get_logger().info("model_loaded", model=name, seconds=round(clock.now() - began, 2))


def _events(name: str, clock: Clock) -> Report:
    said = clock.now()

    def report(read: int, total: int) -> None:
        nonlocal said
        if clock.now() - said >= _EVERY_S:
            said = clock.now()
            get_logger().info("model_loading", model=name, read_bytes=read, of_bytes=total)

    return report


@contextmanager
def _bar(name: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"loading {name}", total=None)
        yield lambda read, total: bar.update(task, completed=read, total=total)

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
"""Between two events; a model that is loaded sooner has none."""


@contextmanager
def load_report(name: str, clock: Clock | None = None) -> Iterator[Report]:
    """What hears of every tensor read of model `name`."""
    with _bar(name) if sys.stderr.isatty() else _events(name, clock or MonotonicClock()) as report:
        yield report


@contextmanager
def _events(name: str, clock: Clock) -> Iterator[Report]:
    """A long load says how far it is, and in the end how long it took."""
    began = said = clock.now()

    def report(read: int, total: int) -> None:
        nonlocal said
        if clock.now() - said >= _EVERY_S:
            said = clock.now()
            get_logger().info("model_loading", model=name, read_bytes=read, of_bytes=total)

    yield report
    if said > began:
        get_logger().info("model_loaded", model=name, seconds=round(clock.now() - began, 2))


@contextmanager
def _bar(name: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"loading {name}", total=None)
        yield lambda read, total: bar.update(task, completed=read, total=total)

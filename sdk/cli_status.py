"""The status command: what the services' own metrics and health say, once or live."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .cli_ask import AsJson


def add_to(app: typer.Typer) -> None:
    """Puts the commands of this file into the application."""
    app.command()(status)


def status(
    address: Annotated[
        list[str] | None, typer.Option(help="A service's metrics port, as host:port; may be repeated.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Take the metrics ports from this YAML.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Nodes, workers, queues per tier, hit rates and spans by origin.

    Example: tiermesh status --watch
    """
    from rich.console import Console
    from rich.live import Live

    from .status import read_all, tables

    addresses = address or _configured(config)
    if as_json:
        services = read_all(addresses)
        print(json.dumps([asdict(service) for service in services]))
        raise typer.Exit(not any(service.reachable for service in services))
    console = Console()
    if not watch:
        services = read_all(addresses)
        console.print(tables(services))
        raise typer.Exit(not any(service.reachable for service in services))
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(tables(read_all(addresses)), refresh=True)
            time.sleep(1)


def _configured(config: Path | None) -> list[str]:
    from tiermesh.common.config import default_mesh, load_config

    mesh = load_config(config) if config else default_mesh()
    return [section.metrics for section in (mesh.edge, mesh.router, mesh.cloud) if section.metrics]

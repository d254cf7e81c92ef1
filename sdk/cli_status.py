"""The status command: what the services' own metrics and health say, once or live."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiermesh.common.errors import TiermeshError
from tiermesh.common.router_status import RouterStatus

from .cli_ask import AsJson
from .cli_cache import Key

if TYPE_CHECKING:
    from rich.console import RenderableType


def add_to(app: typer.Typer) -> None:
    """Puts the commands of this file into the application."""
    app.command()(status)


def status(
    address: Annotated[
        list[str] | None, typer.Option(help="A service's metrics port, as host:port; may be repeated.")
    ] = None,
    router: Annotated[str | None, typer.Option(help="A router, as host:port: what its operators see.")] = None,
    key: Key = "",
    config: Annotated[Path | None, typer.Option(help="Take the addresses from this YAML.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Nodes, workers, queues per tier, hit rates and spans by origin; a router's tiers, tenants and configuration.

    Without --address and --router, of all services of the configuration. With --json it is one list: each metrics
    port with its samples, then the router, which needs an operator's key, with what it tells under "router".
    Example: tiermesh status --watch
    """
    from rich.console import Console
    from rich.live import Live

    from .status import read_all

    look = _Look(address or [], router, key) if address or router else _configured(config, key)
    if as_json:
        services, told = read_all(look.addresses), look.told()
        facts = [asdict(service) for service in services]
        print(json.dumps(facts + ([told] if told else [])))
        raise typer.Exit(not (any(service.reachable for service in services) or (told and told["reachable"])))
    console = Console()
    if not watch:
        shown, reachable = look.shown()
        console.print(shown)
        raise typer.Exit(not reachable)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(look.shown()[0], refresh=True)
            time.sleep(1)


@dataclass(frozen=True, slots=True)
class _Look:
    """What is looked at."""

    addresses: list[str]
    router: str | None
    key: str

    def shown(self) -> tuple[RenderableType, bool]:
        """All of it laid out, and whether anything answered."""
        from rich.console import Group

        from .router_view import view
        from .status import read_all, tables

        services = read_all(self.addresses)
        parts, reachable = [tables(services)], any(service.reachable for service in services)
        if self.router:
            found = self._ask()
            told = view(self.router, found) if isinstance(found, RouterStatus) else f"router {self.router}: {found}"
            parts.append(told)
            reachable = reachable or isinstance(found, RouterStatus)
        return Group(*parts), reachable

    def told(self) -> dict[str, object] | None:
        """The router as plain data."""
        if not self.router:
            return None
        found = self._ask()
        seen = isinstance(found, RouterStatus)
        ready = isinstance(found, RouterStatus) and any(worker.there for worker in found.workers)
        told = {"router": asdict(found)} if isinstance(found, RouterStatus) else {"error": found}
        return {"address": self.router, "reachable": seen, "ready": ready, "samples": [], **told}

    def _ask(self) -> RouterStatus | str:
        """Its status, or why there is none."""
        from tiermesh.common.admin_stub import router_status

        assert self.router is not None
        try:
            return asyncio.run(router_status(self.router, self.key))
        except TiermeshError as error:
            return error.message


def _configured(config: Path | None, key: str) -> _Look:
    from tiermesh.common.config import default_mesh, load_config

    mesh = load_config(config) if config else default_mesh()
    addresses = [section.metrics for section in (mesh.edge, mesh.router, mesh.cloud) if section.metrics]
    return _Look(addresses, os.environ.get("TIERMESH_ROUTER", mesh.router.listen), key)

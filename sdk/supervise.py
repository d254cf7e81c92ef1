"""The whole mesh on this machine: worker, router and edge node as processes, started and stopped together."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from .process import Service, ServiceProcess

# The first start of a worker on a slow disk reads 400 MB of torch; a warm one takes about 4 s.
_READY_S = 120.0
_DRAIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the services listen, as "host:port"; None leaves that to the configuration, port 0 to the system."""

    cloud: str | None = None
    router: str | None = None
    edge: str | None = None
    metrics: str | None = None
    """For all three alike; only a port of 0 makes sense."""


ANY_PORTS = Ports("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")


class Mesh:
    """`async with Mesh(…) as mesh` starts the services in the order in which they need each other.

    Leaving the block drains and stops them, edge first, so that nothing is asked of a hop that is gone. The edge is
    given the router's bound address, and the router the worker's, whenever those listen where the configuration does
    not say. Raises Unavailable when a service does not become healthy.
    """

    def __init__(
        self, config: Path | None = None, ports: Ports | None = None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._arguments = ("--config", str(config)) if config else ()
        self._ports = ports or Ports()
        self._say = say
        self._processes: list[ServiceProcess] = []
        self.addresses: dict[str, str] = {}
        """Bound "host:port" by service, once healthy."""

    @property
    def metrics(self) -> dict[str, str]:
        """Bound "host:port" of each service's metrics."""
        return {p.name: p.addresses["metrics"] for p in self._processes if "metrics" in p.addresses}

    @property
    def pids(self) -> dict[str, int]:
        """Process id by service."""
        return {process.name: process.pid for process in self._processes}

    async def __aenter__(self) -> Self:
        try:
            await self._start("cloud", self._ports.cloud, {})
            moved: dict[str, object] = {} if self._ports.cloud is None else {"WORKERS": [self.addresses["cloud"]]}
            await self._start("router", self._ports.router, moved)
            moved = {} if self._ports.router is None else {"UPSTREAM": self.addresses["router"]}
            await self._start("edge", self._ports.edge, moved)
        except BaseException:
            await asyncio.shield(self._stop())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self._stop())

    async def failed(self) -> str:
        """Waits until any service ends, and tells which and how."""
        stories = [asyncio.create_task(process.story()) for process in self._processes]
        try:
            done, _ = await asyncio.wait(stories, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for story in stories:
                story.cancel()

    async def _start(self, name: str, listen: str | None, keys: Mapping[str, object]) -> None:
        # Overrides by environment are read as YAML, and JSON is YAML.
        given = {"LISTEN": listen, "METRICS": self._ports.metrics, **keys}
        environ = {f"TIERMESH_{name.upper()}__{k}": json.dumps(v) for k, v in given.items() if v is not None}
        process = await ServiceProcess.start(Service(name, self._arguments, environ), self._say)
        self._processes.append(process)
        self.addresses[name] = await process.healthy(_READY_S)

    async def _stop(self) -> None:
        for process in reversed(self._processes):
            await process.stop(_DRAIN_S)


@contextmanager
def ready_note(path: Path | None, mesh: Mesh) -> Iterator[None]:
    """While the block runs, `path` holds the addresses and process ids as JSON: all of it, from the first moment."""
    if path is None:
        yield
        return
    facts = {name: mesh.addresses[name] for name in ("edge", "router", "cloud")}
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(json.dumps({**facts, "http": None, "pids": mesh.pids, "metrics": mesh.metrics}) + "\n")
    half.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)

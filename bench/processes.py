"""Services as processes of their own, for benchmarks that need other meshes than `up` makes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from ..common.secret import write_secret
from ..process import Service, ServiceProcess

_READY_S = 120.0


@asynccontextmanager
async def hop(role: str, *arguments: str) -> AsyncIterator[ServiceProcess]:
    """One of `bench/hops.py`, healthy."""
    service = Service(role, (role, *arguments), module="tiermesh.bench.hops")
    process = await ServiceProcess.start(service, lambda line: None)
    try:
        await process.healthy(_READY_S)
        yield process
    finally:
        await process.stop(5.0)


@asynccontextmanager
async def started(name: str, keys: Mapping[str, object]) -> AsyncIterator[ServiceProcess]:
    """A healthy service on free ports; `keys` are those of its section in the configuration."""
    given = {"LISTEN": "127.0.0.1:0", "METRICS": "127.0.0.1:0", **keys}
    environ = {f"TIERMESH_{name.upper()}__{key}": json.dumps(value) for key, value in given.items()}
    process = await ServiceProcess.start(Service(name, (), environ), lambda line: None)
    try:
        await process.healthy(_READY_S)
        yield process
    finally:
        await process.stop(10.0)


@asynccontextmanager
async def configured_router(values: Mapping[str, Mapping[str, object]]) -> AsyncIterator[ServiceProcess]:
    """A healthy router with a file of its own: `values`, a secret, and any free port."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_secret(folder / "mesh.secret")
        router = {"listen": "127.0.0.1:0", "metrics": None, **values["router"]}
        config = folder / "mesh.yaml"
        config.write_text(json.dumps({**values, "mesh": {"secret_file": "mesh.secret"}, "router": router}))
        process = await ServiceProcess.start(Service("router", ("--config", str(config))), lambda line: None)
        try:
            await process.healthy(_READY_S)
            yield process
        finally:
            await process.stop(10.0)

"""Commands that start services: up, demo, edge, router, cloud."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from tiermesh.common.errors import TiermeshError

from .supervise import Mesh, Ports, ready_note

Config = Annotated[Path | None, typer.Option(help="The mesh's YAML; without one, tenant demo with key demo-key.")]
Listen = Annotated[str | None, typer.Option(help="Where to listen, as host:port; port 0 takes a free one.")]
Metrics = Annotated[str | None, typer.Option(help="Where to serve /metrics, /healthz and /readyz, as host:port.")]
Model = Annotated[Path | None, typer.Option(help="Model directory; the starter model when left out.")]
Threads = Annotated[int | None, typer.Option(help="Compute threads.")]


def add_to(app: typer.Typer) -> None:
    """Puts the commands of this file into the application."""
    for command in (up, demo, edge, router, cloud):
        app.command()(command)


def up(
    config: Config = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written, as JSON, once every service is healthy.")] = None,
    any_ports: Annotated[bool, typer.Option("--any-ports", help="Listen on free ports of loopback instead.")] = False,
) -> None:
    """Run the whole mesh on this machine until Ctrl-C, which drains and stops it.

    Example: tiermesh up --config mesh.yaml --ready-file ready.json
    """
    from .supervise import ANY_PORTS

    _check_config(config)
    asyncio.run(_up(config, ready_file, ANY_PORTS if any_ports else Ports()))


async def _up(config: Path | None, ready_file: Path | None, ports: Ports) -> None:
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)  # from systemd, or another process
    starting = asyncio.create_task(_start_and_wait(config, ready_file, ports))
    stopping = asyncio.create_task(terminated.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            raise TiermeshError(starting.result())
    finally:
        stopping.cancel()
        starting.cancel()
        await asyncio.wait([starting, stopping])


async def _start_and_wait(config: Path | None, ready_file: Path | None, ports: Ports) -> str:
    """The story of the service that ended first."""
    try:
        async with Mesh(config, ports, say=lambda line: print(line, file=sys.stderr)) as mesh:
            for name, address in mesh.addresses.items():
                print(f"{name:<7} {address}", flush=True)
            with ready_note(ready_file, mesh):
                return await mesh.failed()
    finally:
        print("the mesh is stopped", flush=True)


def demo(
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")] = False,
) -> None:
    """Start the mesh, ask twelve held-out prompts twice, show who answered what, and stop.

    Example: tiermesh demo --json | tail -n 1
    """
    from .demo import run_demo

    asyncio.run(run_demo(as_json))


def edge(
    config: Config = None,
    model: Model = None,
    listen: Listen = None,
    upstream: Annotated[str | None, typer.Option(help="The router (or a worker), as host:port.")] = None,
    metrics: Metrics = None,
    threads: Threads = None,
) -> None:
    """Run an edge node.

    Example: tiermesh edge --model ./edge-model --listen 127.0.0.1:7070 --upstream 127.0.0.1:7080
    """
    _become("edge", config=config, model=model, listen=listen, upstream=upstream, metrics=metrics, threads=threads)


def router(
    config: Config = None,
    listen: Listen = None,
    worker: Annotated[str | None, typer.Option(help="Workers, as host:port[,host:port…].")] = None,
    metrics: Metrics = None,
    redis: Annotated[
        str | None, typer.Option(help="Keep answers there, for all routers of the mesh, as redis://host:port/0.")
    ] = None,
) -> None:
    """Run a router.

    Example: tiermesh router --listen 127.0.0.1:7080 --worker 127.0.0.1:7090,127.0.0.1:7091
    """
    _become("router", config=config, listen=listen, worker=worker, metrics=metrics, redis=redis)


def cloud(
    config: Config = None,
    model: Model = None,
    listen: Listen = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    metrics: Metrics = None,
    threads: Threads = None,
) -> None:
    """Run a cloud worker.

    Example: tiermesh cloud --model ./Llama-3.2-1B --listen 127.0.0.1:7090 --device auto
    """
    given = {"listen": listen, "device": device, "dtype": dtype, "metrics": metrics, "threads": threads}
    _become("cloud", config=config, model=model, **given)


def _become(service: str, **options: object) -> None:
    """This process becomes the service; its main checks the values."""
    arguments = [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
    os.execv(sys.executable, [sys.executable, "-P", "-m", f"tiermesh.{service}.main", *arguments])


def _check_config(config: Path | None) -> None:
    """Says at once, and once, what three processes would each say."""
    from tiermesh.common.config import load_config

    if config is not None:
        load_config(config, with_secret=True)

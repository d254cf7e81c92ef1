"""The worker's process: `python -P -m tiermesh.cloud.main --help`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvloop

from ..common.config import MeshConfig, default_mesh, load_config, model_path, require_safe_listen
from ..common.errors import TiermeshError
from ..common.inference_servicer import InferenceServicer
from ..common.relay_server import RelayServicer
from ..common.rpc import RpcServer
from ..common.telemetry import open_metrics, setup_logging
from .announcer import Announcer
from .loading import load_worker
from .loads import Loads
from .relay import WorkerPeer

GRACE_S = 10.0
"""What running answers get when the process is told to stop."""


def main() -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 1 when the worker can't start."""
    setup_logging("cloud")
    # The engine's thread waits for the interpreter lock this long while the event loop computes; 5 ms are two steps.
    sys.setswitchinterval(0.0005)
    try:
        return uvloop.run(serve(read_config(sys.argv[1:])))
    except TiermeshError as error:
        print(f"cloud: {error.message}", file=sys.stderr)
        return 1


def read_config(arguments: list[str]) -> MeshConfig:
    """The file's configuration, or the default one, with what the command line says instead. Raises ConfigError."""
    parser = argparse.ArgumentParser(prog="tiermesh.cloud.main", description="Run a worker.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the mesh's YAML")
    parser.add_argument("--model", metavar="DIR", help="Hugging Face directory, or `starter`")
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--metrics", metavar="HOST:PORT")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, metavar="N", help="0 leaves one core to the rest")
    parser.add_argument("--slots", type=int, metavar="N", help="sequences that run at once")
    given = parser.parse_args(arguments)
    mesh = load_config(given.config) if given.config else default_mesh()
    names = ("listen", "metrics", "device", "dtype", "threads", "slots")
    changes = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.model is not None:
        changes["model"] = model_path(given.model, "cloud")
    return replace(mesh, cloud=replace(mesh.cloud, **changes))


async def serve(mesh: MeshConfig) -> int:
    """Runs until told to stop; then lets running answers finish."""
    config = mesh.cloud
    for address in filter(None, (config.listen, config.metrics)):
        require_safe_listen(address, mesh.insecure)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Supervisors send the one, Ctrl-C in a terminal the other.
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    worker, server = load_worker(config), RpcServer()
    loads = Loads(worker.engine)
    server.add_inference(InferenceServicer(worker))
    server.add_relay(RelayServicer(partial(WorkerPeer.connect, worker, loads)))
    address = await server.start(config.listen)
    close = open_metrics(config.metrics, worker.metrics.registry, worker.accepts)
    worker.engine.start(asyncio.get_running_loop())
    telling = asyncio.create_task(loads.run())
    await server.ready(True)
    announcer = Announcer(config.announce_to, config.advertise or address, config.token)
    announcer.start()
    print(f"listening {address}", flush=True)
    await stop.wait()
    loads.drain()
    await announcer.leave()
    await worker.drain(GRACE_S)
    await server.stop(0.5)
    worker.engine.stop()
    telling.cancel()
    close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The edge node's process: `python -P -m tiermesh.edge.main --help`."""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from ..common.config import MeshConfig, require_safe_listen
from ..common.errors import TiermeshError
from ..common.inference_servicer import InferenceServicer
from ..common.rpc import RpcServer, channel
from ..common.telemetry import open_metrics, setup_logging
from .node import EdgeNode
from .options import read_config
from .service import EdgeService

GRACE_S = 5.0
"""What running answers get when the process is told to stop."""


def main() -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 1 when the node can't start."""
    setup_logging("edge")
    try:
        return uvloop.run(serve(read_config(sys.argv[1:])))
    except TiermeshError as error:
        print(f"edge: {error.message}", file=sys.stderr)
        return 1


async def serve(mesh: MeshConfig) -> int:
    """Runs until told to stop; then lets running answers finish."""
    config = mesh.edge
    for address in filter(None, (config.listen, config.metrics)):
        require_safe_listen(address, mesh.insecure)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Supervisors send the one, Ctrl-C in a terminal the other.
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    node, server = EdgeNode.load(config), RpcServer()
    async with channel(config.upstream) as upstream:
        service = EdgeService(node, upstream)
        server.add_inference(InferenceServicer(service))
        address = await server.start(config.listen)
        known, registry = node.tenants.known, node.metrics.registry
        close = open_metrics(config.metrics, registry, known.is_set)
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(node.run()), tasks.create_task(_ready(known, server))]
            print(f"listening {address}", flush=True)
            await stop.wait()
            service.draining = True
            await server.stop(GRACE_S)
            for task in beside:
                task.cancel()
        close()
    node.close()
    return 0


async def _ready(known: asyncio.Event, server: RpcServer) -> None:
    """Healthy as soon as somebody can be served: once a policy is known, from disk or from the router."""
    await known.wait()
    await server.ready(True)


if __name__ == "__main__":
    sys.exit(main())

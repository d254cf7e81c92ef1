"""The router's process: `python -P -m tiermesh.router.main --help`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys

import uvloop

from ..common.admin_servicer import AdminServicer
from ..common.clock import MonotonicClock
from ..common.errors import TiermeshError
from ..common.inference_servicer import InferenceServicer
from ..common.registry_servicer import RegistryServicer
from ..common.relay_server import RelayServicer
from ..common.rpc import RpcServer
from ..common.telemetry import open_metrics, setup_logging
from .arguments import parse, read_config
from .lifecycle import drain, follow_health, forget_workers, renew_policies, space_streams
from .reload import Reloader
from .service import RouterService


def main() -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 1 when the router can't start."""
    setup_logging("router")
    try:
        arguments = parse(sys.argv[1:])
        return uvloop.run(serve(arguments))
    except TiermeshError as error:
        print(f"router: {error.message}", file=sys.stderr)
        return 1


async def serve(given: argparse.Namespace) -> int:
    """Runs until told to stop; then lets running answers finish."""
    mesh = read_config(given)
    service, server, stop = RouterService(mesh, MonotonicClock()), RpcServer(), asyncio.Event()
    reloader = Reloader(mesh.files, lambda: read_config(given), service)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):  # Supervisors send the one, Ctrl-C in a terminal the other.
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)  # from `kill -HUP`, or a supervisor's reload
    server.add_inference(InferenceServicer(service))
    server.add_relay(RelayServicer(service.connect))
    server.add_registry(RegistryServicer(service))
    server.add_admin(AdminServicer(service.operations))
    address = await server.start(mesh.router.listen)
    close = open_metrics(mesh.router.metrics, service.metrics.registry, lambda: service.ready)
    # What was made so far lives as long as the process. The collector looked at all of it every few thousand requests,
    # and each look held up everybody for 25 ms.
    gc.collect()
    gc.freeze()
    async with asyncio.TaskGroup() as tasks:
        beside = [
            tasks.create_task(follow_health(service, server)),
            tasks.create_task(renew_policies(service)),
            tasks.create_task(space_streams(service)),
            tasks.create_task(forget_workers(service)),
            tasks.create_task(reloader.run()),
        ]
        print(f"listening {address}", flush=True)
        await stop.wait()
        await drain(service, server)
        for task in beside:
            task.cancel()
    await service.close()
    close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

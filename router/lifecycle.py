"""What runs beside the requests: health that follows the workers, policies renewed, streams spaced."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from ..common.rpc import RpcServer
from ..common.telemetry import get_logger
from .policy import RENEW_S
from .service import RouterService

_log = get_logger()

_DRAIN_POLL_S = 0.02
_FORGET_S = 1.0
_SPACING_S = 0.05
_LAST_WORDS_S = 0.5
"""For what has ended to reach its client; then streams of edge nodes break."""


async def follow_health(service: RouterService, server: RpcServer) -> None:
    """Connects to the workers, and serves while one of them can take requests."""
    changed = asyncio.Event()
    service.start(changed.set)
    while True:
        await changed.wait()
        changed.clear()
        await server.ready(service.ready)
        _log.info("ready" if service.ready else "not_ready")


async def drain(service: RouterService, server: RpcServer) -> None:
    """Refuses what is new, and gives what was taken in `router.drain_ms` to end. What has not then is told so: whoever
    asked may go on elsewhere.
    """
    service.drain()
    _log.info("draining", running=service.busy)
    await server.retire()
    with suppress(TimeoutError):
        async with asyncio.timeout(service.drain_s):
            while service.busy:  # noqa: ASYNC110 - it happens once in a router's life
                await asyncio.sleep(_DRAIN_POLL_S)
    _log.info("drained", cut_short=service.busy)
    await service.end_all()
    await server.stop(_LAST_WORDS_S)


async def space_streams(service: RouterService) -> None:
    """Lets streams hear less often while this thread has little time left."""
    while True:
        began, worked = time.perf_counter(), time.thread_time()
        await asyncio.sleep(_SPACING_S)
        service.spacing.worked((time.thread_time() - worked) / (time.perf_counter() - began))


async def forget_workers(service: RouterService) -> None:
    """Lets go of announced workers whose lease has ended."""
    while True:
        await asyncio.sleep(_FORGET_S)
        service.forget_workers()


async def renew_policies(service: RouterService) -> None:
    """Tells edge nodes again and again what they may do."""
    while True:
        await asyncio.sleep(RENEW_S)
        service.renew_policies()

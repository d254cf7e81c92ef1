"""What runs beside the requests: health that follows the workers, policies renewed."""

from __future__ import annotations

import asyncio

from ..common.rpc import RpcServer
from ..common.telemetry import get_logger
from .policy import RENEW_S
from .service import RouterService

_log = get_logger()


async def follow_health(service: RouterService, server: RpcServer) -> None:
    """Connects to the workers, and serves while one of them can take requests."""
    changed = asyncio.Event()
    service.start(changed.set)
    while True:
        await changed.wait()
        changed.clear()
        await server.ready(service.ready)
        _log.info("ready" if service.ready else "not_ready")


async def renew_policies(service: RouterService) -> None:
    """Tells edge nodes again and again what they may do."""
    while True:
        await asyncio.sleep(RENEW_S)
        service.renew_policies()

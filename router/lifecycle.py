"""What runs beside the requests: health that follows the workers, policies renewed, configuration read again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from ..common.config_types import MeshConfig
from ..common.errors import ConfigError
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


async def reload_on_hangup(service: RouterService, read: Callable[[], MeshConfig]) -> None:
    """Reads the configuration again on SIGHUP, as `kill -HUP` or a supervisor's reload sends it."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    while True:
        await asked.wait()
        asked.clear()
        try:
            service.reload(read())
            _log.info("config_reloaded")
        except ConfigError as error:
            _log.error("config_kept", detail=error.message)

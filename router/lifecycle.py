"""What runs beside the requests: health that follows the workers, policies renewed, configuration read again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress

from ..common.config_types import MeshConfig
from ..common.errors import ConfigError
from ..common.rpc import RpcServer
from ..common.telemetry import get_logger
from .policy import RENEW_S
from .service import RouterService

_log = get_logger()

_DRAIN_POLL_S = 0.02
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
        except Exception:  # noqa: BLE001 - the top of a task; logged
            _log.exception("config_kept", detail="a defect of ours; what was in force stays so")

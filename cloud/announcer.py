"""Tells routers that a worker is there, again and again; and in the end that it leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from ..common.errors import TiermeshError
from ..common.registry_stub import announce
from ..common.rpc import channel
from ..common.telemetry import get_logger

_log = get_logger()

_AGAIN_S = 1.0
"""After a router that did not answer, or refused."""
_PER_LEASE = 3
"""Words in the time of a lease: two may be lost."""


class Announcer:
    """For one worker and all of its routers."""

    def __init__(self, routers: Sequence[str], address: str, token: str | None) -> None:
        """`address` is where routers reach the worker, `token` what it shows them."""
        self._routers = routers
        self._address = address
        self._token = token
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to tell."""
        self._tasks = [asyncio.create_task(self._keep_telling(router)) for router in self._routers]

    async def leave(self) -> None:
        """Tells all routers that the worker leaves; one that doesn't listen sees its stream end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*map(self._take_leave, self._routers), return_exceptions=True)

    async def _keep_telling(self, router: str) -> None:
        known, refused = False, ""
        async with channel(router) as chan:
            while True:
                try:
                    pause_s = await announce(chan, self._address, self._token, leaving=False) / _PER_LEASE
                    if not known:
                        _log.info("announced", router=router, address=self._address)
                    known, refused = True, ""
                except TiermeshError as error:
                    if error.reason != refused:
                        _log.warning("not_announced", router=router, reason=error.reason, detail=error.message)
                    pause_s, known, refused = _AGAIN_S, False, error.reason
                await asyncio.sleep(pause_s * random.uniform(0.8, 1.0))

    async def _take_leave(self, router: str) -> None:
        async with channel(router) as chan:
            await announce(chan, self._address, self._token, leaving=True)

"""Tells every connected peer how busy the worker is: when that changes, and at least every 250 ms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from ..common.frames import DownFrame, Load
from .engine import Engine

_INTERVAL_S = 0.25
_PAUSE_S = 0.01
"""Between two frames: at full load something changes with every step, and a scheduler above needs no more than this."""


class Loads:
    """The peers of one worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._peers: list[Callable[[DownFrame], None]] = []
        self._changed = asyncio.Event()
        self._draining = False
        engine.on_load = self._changed.set

    def join(self, send: Callable[[DownFrame], None]) -> None:
        """A peer connects, and hears the load at once."""
        self._peers.append(send)
        send(self._frame())

    def leave(self, send: Callable[[DownFrame], None]) -> None:
        """A peer is gone."""
        if send in self._peers:
            self._peers.remove(send)

    def drain(self) -> None:
        """From now on the worker takes nothing new."""
        self._draining = True
        self._changed.set()

    async def run(self) -> None:
        """Sends until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._changed.wait()
            self._changed.clear()
            frame = self._frame()
            for send in self._peers:
                send(frame)
            await asyncio.sleep(_PAUSE_S)

    def _frame(self) -> Load:
        load = self._engine.load
        return Load(
            load.slots,
            load.running,
            load.waiting,
            load.kv_free,
            load.step_s,
            self._draining,
            load.prefix_hit,
            sum(load.preemptions.values()),
        )

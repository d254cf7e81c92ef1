"""A quiet moment: what nobody waits for is done while no client's answer is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

QUIET_S = 0.03
"""Without a running answer, until the moment counts as quiet: clients that ask one after the other pause for less."""


class Lull:
    """Counts running answers, and tells when there has been none for a while. For the event loop's thread."""

    def __init__(self) -> None:
        self._running = 0
        self._begun = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting: set[asyncio.Timeout] = set()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around one answer."""
        self._running += 1
        self._begun += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def wait(self, until: float) -> None:
        """Returns in a quiet moment, or at `until` (the event loop's clock, seconds) at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until) as patience:
                self._waiting.add(patience)
                try:
                    await self._quiet()
                finally:
                    self._waiting.discard(patience)

    def hurry(self) -> None:
        """Nobody who waits now waits any longer."""
        for patience in self._waiting:
            patience.reschedule(asyncio.get_running_loop().time())

    async def _quiet(self) -> None:
        while True:
            await self._idle.wait()
            begun = self._begun
            await asyncio.sleep(QUIET_S)
            if self._idle.is_set() and begun == self._begun:
                return

"""Writes to a stream whose reader may stop reading: flow control holds the writer back, this bounds for how long."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc

from .errors import ReaderStalled

STALLED_S = 30.0
"""A reader that takes nothing for so long is given up: what waits for it takes up memory."""


class PatientWriter:
    """A context around all writes of one call. Raises ReaderStalled out of a write that took `stalled_s`, or up to
    half as much again: one timer looks twice in that time, so that a write costs none of its own.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], stalled_s: float = STALLED_S) -> None:
        self._context = context
        self._stalled_s = stalled_s
        self._scope = asyncio.Timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._writing = False
        self._looks = 0
        """Looks since the present write began."""

    async def write(self, message: Any) -> None:
        """Returns when the transport has taken the message."""
        self._looks, self._writing = 0, True
        await self._context.write(message)
        self._writing = False

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        self._look_later()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError as exc:
            raise ReaderStalled(
                f"nothing of this stream was read for {self._stalled_s:g} s, so it was ended; read as it comes"
            ) from exc

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._stalled_s / 2, self._look)

    def _look(self) -> None:
        if self._writing:
            self._looks += 1
        if self._writing and self._looks > 2:
            self._scope.reschedule(0)
        else:
            self._look_later()

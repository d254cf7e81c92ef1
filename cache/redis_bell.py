"""Bells between routers: a message that something happened to a key, over Redis publish/subscribe.

A bell only saves time. Whoever listens looks again after a while by itself, so one that is not heard costs that while.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

_PAUSE_S = 0.5
"""Between two tries to connect."""


class Bell:
    """This process's own channel, and whom to call for which message on it."""

    def __init__(self, client: Redis) -> None:
        self.channel = f"tm:bell:{secrets.token_hex(8)}"
        self._client = client
        self._listeners: dict[str, list[Callable[[], None]]] = {}

    def listen(self, name: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back whenever the bell rings for a name; returns what ends that."""
        callbacks = self._listeners.setdefault(name, [])
        callbacks.append(callback)

        def end() -> None:
            callbacks.remove(callback)
            if not callbacks and self._listeners.get(name) is callbacks:
                del self._listeners[name]

        return end

    async def run(self) -> None:
        """Listens until cancelled."""
        while True:
            try:
                async with self._client.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(self.channel)
                    async for message in channel.listen():
                        for callback in tuple(self._listeners.get(message["data"].decode(), ())):
                            callback()
            except (RedisError, OSError):
                await asyncio.sleep(_PAUSE_S)

"""The configuration in force, and what becomes of newer ones: they are read on SIGHUP, and when a file has changed.

Files are compared by content, about once a second: sizes and times stay the same where a key replaces another within a
tick of the clock, and paths stay the same where a symbolic link moves, as it does under Kubernetes. A change counts
once two looks in a row agree, so what an editor or a copy has half written is not taken for a configuration: cut
short, a YAML is often a good one, with fewer tenants.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ..common.config_types import MeshConfig
from ..common.errors import ConfigError
from ..common.router_status import ConfigStatus
from ..common.telemetry import get_logger

_log = get_logger()

_LOOK_S = 1.0
_LOOKS_WITH_FAULT = 10
"""After so many looks a configuration with a fault is tried again: what mends it may be a file that was missing."""


class Reloads(Protocol):
    """What is configured."""

    config: ConfigStatus

    def reload(self, mesh: MeshConfig) -> None:
        """Puts a configuration in force. Raises ConfigError when it can't; nothing changes then."""
        ...


def check_reload(now: MeshConfig, then: MeshConfig) -> None:
    """Raises ConfigError for what only a restart can change."""
    if [tier.name for tier in now.tiers] != [tier.name for tier in then.tiers]:
        raise ConfigError("tiers: names and order of tiers change only with a restart")
    for key in ("listen", "metrics", "advertise", "worker_token"):
        if getattr(now.router, key) != getattr(then.router, key):
            raise ConfigError(f"router.{key} changes only with a restart")
    if now.name != then.name:
        raise ConfigError("mesh.name changes only with a restart")
    if now.cache != then.cache:
        raise ConfigError("cache: where answers are kept, and for how many bytes, changes only with a restart")
    if now.cache.shared and now.secret != then.secret:
        raise ConfigError("mesh.secret_file: the shared cache is kept under this secret; it changes with a restart")


class Reloader:
    """Reads anew and puts in force. What can't be put in force leaves the one before where it is."""

    def __init__(
        self, files: Sequence[Path], read: Callable[[], MeshConfig], service: Reloads, *, look_s: float = _LOOK_S
    ) -> None:
        self._files = tuple(files)
        self._read = read
        self._service = service
        self._look_s = look_s
        self._asked = asyncio.Event()
        self._known = fingerprint(self._files)
        service.config = ConfigStatus(str(files[0]) if files else "", time.time())

    def ask(self) -> None:
        """Reads them now, changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        before, looks = self._known, 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._asked.wait()
            # Off the loop: reading and checking a thousand tenants takes longer than a token.
            seen = await asyncio.to_thread(fingerprint, self._files)
            changed = seen != self._known and seen == before
            looks = looks + 1 if self._service.config.fault else 0
            before = seen
            if self._asked.is_set() or changed or looks >= _LOOKS_WITH_FAULT:
                asked, looks = self._asked.is_set(), 0
                self._asked.clear()
                self._known = before = seen
                await self._load(again=not (asked or changed))

    async def _load(self, again: bool) -> None:
        try:
            mesh = await asyncio.to_thread(self._read)
            self._service.reload(mesh)
        except ConfigError as error:
            self._keep(error.message, again)
            return
        except Exception:  # noqa: BLE001 - the top of a task; logged
            _log.exception("defect", task="reload")
            self._keep("a defect of ours, which the log has; what was in force stays so", again)
            return
        self._take(mesh)

    def _take(self, mesh: MeshConfig) -> None:
        state = self._service.config
        if mesh.files != self._files:
            self._files = mesh.files
            self._known = fingerprint(self._files)
        self._service.config = ConfigStatus(state.source, time.time(), state.taken + 1, state.kept)
        _log.info("config_reloaded", source=state.source)

    def _keep(self, fault: str, again: bool) -> None:
        state = self._service.config
        if again and fault == state.fault:
            return
        self._service.config = ConfigStatus(state.source, state.since, state.taken, state.kept + 1, fault)
        _log.error("config_kept", source=state.source, detail=fault)


def fingerprint(files: Sequence[Path]) -> str:
    """Changes when what can be read under these names does."""
    digest = hashlib.sha256()
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            content = type(error).__name__.encode()
        digest.update(len(content).to_bytes(8))
        digest.update(content)
    return digest.hexdigest()

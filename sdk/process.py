"""One service as a process: started, watched until it is healthy, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tiermesh.common.errors import Unavailable

_POLL_S = 0.05
_KEPT_LINES = 20


@dataclass(frozen=True, slots=True)
class Service:
    """What to start."""

    name: str
    """"edge", "router" or "cloud"."""
    arguments: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    """Put over the environment of this process."""
    module: str = ""
    """Where its main is; empty for `tiermesh.<name>.main`."""


class ServiceProcess:
    """A started service. `say` gets each line that it writes to stderr."""

    def __init__(self, service: Service, process: asyncio.subprocess.Process, say: Callable[[str], None]) -> None:
        self.name = service.name
        self.pid = process.pid
        self.addresses: dict[str, str] = {}
        """What it said it listens on, by word: "listening", "metrics"."""
        self._process = process
        self._tail: deque[str] = deque(maxlen=_KEPT_LINES)
        self._readers = [
            asyncio.create_task(self._read_facts(process.stdout)),
            asyncio.create_task(self._read_log(process.stderr, say)),
        ]

    @classmethod
    async def start(cls, service: Service, say: Callable[[str], None]) -> ServiceProcess:
        """Starts the process, in a session of its own: Ctrl-C reaches us alone, and we stop it in order."""
        module = service.module or f"tiermesh.{service.name}.main"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tiermesh.child", str(os.getpid()), module),
            *service.arguments,
            env={**os.environ, **service.environ, "PYTHONUNBUFFERED": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return cls(service, process, say)

    @property
    def running(self) -> bool:
        """Whether the process still exists."""
        return self._process.returncode is None

    async def healthy(self, within_s: float) -> str:
        """Its "host:port" once its health check answers SERVING; raises Unavailable when it dies or takes too long."""
        ends = time.monotonic() + within_s
        while time.monotonic() < ends:
            if not self.running:
                raise Unavailable(await self.story())
            if (address := self.addresses.get("listening")) and await serving(address):
                return address
            await asyncio.sleep(_POLL_S)
        raise Unavailable(f"{self.name} was not ready within {within_s:.0f} s; its last line: {self._last_line()}")

    async def story(self) -> str:
        """Waits for the end of the process; what is worth telling about it, in one line."""
        status = await self._process.wait()
        await asyncio.wait(self._readers)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{self.name} {how}: {self._last_line()}"

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, grace_s seconds to drain, SIGKILL."""
        if self.running:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    self._process.kill()
        await self._process.wait()
        await asyncio.wait(self._readers)

    def _last_line(self) -> str:
        return self._tail[-1] if self._tail else "it said nothing"

    async def _read_facts(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        async for line in stream:
            word, _, value = line.decode(errors="replace").strip().partition(" ")
            self.addresses[word] = value

    async def _read_log(self, stream: asyncio.StreamReader | None, say: Callable[[str], None]) -> None:
        assert stream is not None
        async for line in stream:
            text = line.decode(errors="replace").rstrip()
            if text:
                self._tail.append(text)
                say(text)


async def serving(address: str, service: str = "", timeout_s: float = 2.0) -> bool:
    """Whether the server at "host:port" answers its health check with SERVING."""
    async with grpc.aio.insecure_channel(address) as channel:
        check = cast(Any, health_pb2_grpc.HealthStub(channel)).Check
        try:
            answer = await check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

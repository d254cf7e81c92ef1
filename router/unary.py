"""Score and CountTokens: one call to one worker each. Scoring waits its turn in the schedule like an answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc

from ..common import inference_stub
from ..common.config_types import TenantConfig
from ..common.errors import NoWorkers
from ..common.rpc import channel
from ..common.types import Prompt, ScoreRequest, Scores
from .jobs import Job
from .parts import Parts
from .registry import Worker


class Unary:
    """Channels to the workers beside their relays."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def score(self, request: ScoreRequest, tenant: TenantConfig, deadline: float, token: str | None) -> Scores:
        """Scores from the least busy worker. Raises the worker's error, a refusal, or NoWorkers."""
        parts = self._parts
        tokens = parts.estimates.prompt_tokens(request.prompt)
        reservation = await parts.limits.hold(tenant, tokens)
        number = parts.slots.number()
        service_s = parts.estimates.service_s(tokens, 0.0, parts.registry.batches)
        used = 0.0
        ticket = None
        try:
            identity = hash(replace(request, deadline_s=None))
            ticket = parts.slots.submit(
                Job(number, tenant.name, request.tier, tokens, deadline, service_s, service_s, identity)
            )
            await ticket.wait()
            used = float(tokens)
            worker = self._worker()
            beyond = worker.begin()
            try:
                left_s = max(deadline - parts.clock.now(), 0.001)
                asked = replace(request, deadline_s=left_s)
                return await inference_stub.score(self._channel(worker), asked, token or "")
            finally:
                worker.end(beyond)
        finally:
            if ticket is not None:
                ticket.release(used)
            parts.limits.settle(reservation, used)

    async def count_tokens(self, prompt: Prompt, model: str, token: str | None) -> int:
        """Tokens of a prompt, as a worker counts them."""
        return await inference_stub.count_tokens(self._channel(self._worker()), prompt, model, token or "")

    async def close(self) -> None:
        """Closes the channels."""
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(open_channel.close() for open_channel in channels.values()))

    def _worker(self) -> Worker:
        worker = self._parts.registry.pick()
        if worker is None:
            raise NoWorkers("no worker is ready; try again soon", retry_after_s=1.0)
        return worker

    def _channel(self, worker: Worker) -> grpc.aio.Channel:
        if worker.address not in self._channels:
            self._channels[worker.address] = channel(worker.address)
        return self._channels[worker.address]

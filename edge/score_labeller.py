"""Labels from a running mesh, by its `Score` rpc."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc

from ..common import inference_stub
from ..common.errors import ConfigError, NoWorkers, Overloaded, QuotaExceeded, Unavailable
from ..common.types import Digests, ModelInfo, Sampling, ScoreRequest

_CALL_S = 30.0
"""Deadline of one call."""
_PATIENCE_S = 180.0
"""How long a call is made again while the mesh is busy, gone, or the tenant's limit per minute is used up."""
_LEAST_WAIT_S = 0.5


class ScoreLabeller:
    """A `Labeller` over a channel to a router, a worker or an edge node, as one tenant."""

    def __init__(self, channel: grpc.aio.Channel, key: str, model: str) -> None:
        self._channel = channel
        self._key = key
        self._model = model

    async def choices(self, ids: Sequence[int], start: int, sampling: Sampling) -> Sequence[int]:
        """See `Labeller`. A refusal for want of capacity is waited out, as long as the server says."""
        request = ScoreRequest(tuple(ids), start, self._model, sampling, deadline_s=_CALL_S)
        ends = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return (await inference_stub.score(self._channel, request, self._key)).choices
            except (Unavailable, Overloaded, QuotaExceeded) as busy:
                wait_s = max(_LEAST_WAIT_S, busy.retry_after_s or 0.0)
                if time.monotonic() + wait_s > ends:
                    raise
                await asyncio.sleep(wait_s)


async def served_model(channel: grpc.aio.Channel, key: str, edge: Digests) -> ModelInfo:
    """The default model behind a channel. Raises NoWorkers, or ConfigError when it has other ids than the edge."""
    models = await inference_stub.models(channel, key)
    if not models:
        raise NoWorkers("no worker is ready there, so nobody can label; start one and try again")
    theirs = models[0].digests
    if (theirs.tokenizer, theirs.template) != (edge.tokenizer, edge.template):
        raise ConfigError(
            f"the edge and {models[0].id} are no pair: their tokenizers or chat templates differ; "
            f"export the edge from the same family"
        )
    return models[0]

"""The parts of one edge node, put together, and the work that goes on beside its requests."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from ..cache.memory import MemoryStore
from ..common.clock import MonotonicClock
from ..common.config_types import EdgeConfig
from ..common.text import Text
from ..common.types import ModelInfo, Request
from .admission import Admission
from .artifact import read_artifact
from .audits import Audits
from .chooser import Pace
from .drafting import Draft, LocalDraft
from .exits import Exits
from .ledgers import Ledgers
from .lull import Lull
from .metrics import EdgeMetrics
from .model import EdgeModel
from .pairing import Pairing
from .sampling import Picker
from .segment_costs import measure_costs
from .sequence import SequenceState
from .split import SplitState
from .tenants import Tenants
from .trust import Trust
from .units import Borders, line_ends
from .upstream import Upstream

CACHE_BYTES = 64 * 2**20
"""Of answers that this node keeps: about 50,000 short ones."""


class EdgeNode:
    """Model, text, tenants, upstream, cache, admission, metrics; and the KV caches of those who run."""

    def __init__(self, config: EdgeConfig, model: EdgeModel, text: Text) -> None:
        clock = MonotonicClock()
        self.config = config
        self.artifact = model.artifact
        self.text = text
        self.tenants = Tenants(config.state_dir)
        self.upstream = Upstream(
            config.upstream, config.name, self.artifact.digests, config.node_key, self.tenants.replace
        )
        self.cache = MemoryStore(CACHE_BYTES, clock)
        self.admission = Admission(config.sessions, clock)
        self.pairing = Pairing(self.artifact.digests, self.artifact.calibration)
        self.pace = Pace()
        self.metrics = EdgeMetrics()
        self.ledgers = Ledgers(config.state_dir, self.artifact.digests.model)
        self.lull = Lull()
        coins = random.Random(secrets.randbits(256))
        self.audits = Audits(self.upstream, self.tenants, self.metrics, self.lull, coins)
        self._model = model
        self._line_ends = line_ends(text.token_bytes)
        self._free: list[SequenceState] = [model.sequence()]
        self._exits: Exits | None = None
        # One thread: the graph itself uses `threads` cores, and units of several answers take turns.
        self._thread = ThreadPoolExecutor(1, "edge-model")
        self._watch()

    @classmethod
    def load(cls, config: EdgeConfig) -> EdgeNode:
        """Reads the model's directory and warms the model up. Raises ModelDirError."""
        artifact = read_artifact(config.model)
        node = cls(config, EdgeModel.load(artifact, config.threads), Text(config.model))
        node._warm_up()
        node.tenants.restore()
        node.ledgers.restore()
        return node

    def own_model(self) -> ModelInfo:
        """The edge model itself, under the name it has while no pool is known."""
        shapes = self.artifact.architecture
        return ModelInfo(self.artifact.directory.name, self.artifact.digests, shapes.max_length, shapes.vocab)

    def drafts(self, request: Request, answer_start: int) -> Callable[[], Awaitable[Draft]]:
        """What opens a draft for one request: it waits for a place, and takes a KV cache."""
        picker = Picker(request.sampling, answer_start, request.logprobs, request.top_logprobs)
        borders = Borders(self._line_ends, self.end_ids(request))

        async def open_draft() -> Draft:
            entered = await self.admission.enter()
            state = self._free.pop() if self._free else self._model.sequence()

            def release(used: SequenceState) -> None:
                self._count_drafts()
                used.reset()
                self._free.append(used)
                self.admission.leave(entered)

            exits = self._exits.account(greedy=request.sampling.greedy) if self._exits else None
            return LocalDraft(state, picker, borders, self._thread, release, exits)

        return open_draft

    def trust(self, request: Request) -> Trust:
        """What the units of one answer are held to; follows the pool from unit to unit."""
        return Trust(lambda: self.pairing.in_force(self.upstream.find(request.model)), request.sampling)

    def end_ids(self, request: Request) -> frozenset[int]:
        """Ids that end an answer to this request."""
        return frozenset((*self.artifact.eos_ids, *request.stop_ids))

    async def run(self) -> None:
        """Keeps the link to the next hop up, writes the ledger down and audits, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for work in (self.upstream.run(), self.ledgers.run(), self.audits.run()):
                tasks.create_task(work)

    def close(self) -> None:
        """Writes the ledger's last word, and ends the model's thread."""
        self.ledgers.close()
        self._thread.shutdown(wait=True)

    def _watch(self) -> None:
        """Gauges read what they show when they are asked."""
        metrics, pace = self.metrics, self.pace
        metrics.watch(self.ledgers)
        metrics.running.set_function(lambda: self.admission.running)
        metrics.waiting.set_function(lambda: self.admission.waiting)
        metrics.connected.set_function(lambda: self.upstream.connected)
        metrics.calibrated.set_function(lambda: not self.pairing.fault(self.upstream.find("")))
        metrics.acceptance.set_function(lambda: pace.acceptance.get(0.0))
        metrics.visit.set_function(lambda: pace.travel_s.get(0.0))

    def _count_drafts(self) -> None:
        for name, account in self._exits.named().items() if self._exits else ():
            drafted, accepted = account.take_counts()
            self.metrics.inner_exit.labels(name).set(account.on)
            self.metrics.inner_cost.labels(name).set(account.cost_ratio)
            self.metrics.inner_drafts.labels(name, "accepted").inc(accepted)
            self.metrics.inner_drafts.labels(name, "refused").inc(drafted - accepted)

    def _warm_up(self) -> None:
        """The first runs allocate; 20 times a step's time on a small model. No request should pay that."""
        state = self._free[0]
        state.catch_up([0] * 8)
        state.step(0)
        state.reset()
        begun = time.perf_counter()
        state.catch_up([0])
        state.step(0)
        self.pace.edge_step_s.add((time.perf_counter() - begun) / 2)
        inner = self.artifact.inner_exit
        if inner is not None and isinstance(state, SplitState):
            self._exits = Exits(measure_costs(state), inner.curve)
            self._count_drafts()
        state.reset()

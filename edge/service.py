"""The public API on an edge node."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field

import grpc

from ..cache.keys import CacheKey, cacheable, exact_key
from ..cache.port import Keeping
from ..cache.recorder import Recorder
from ..common import inference_stub
from ..common.errors import Cancelled, Draining, QuotaExceeded, RequestIdReused, TiermeshError
from ..common.frames import UsageReport
from ..common.inference_servicer import Caller, bearer
from ..common.types import (
    CacheControl,
    Event,
    Finished,
    FinishReason,
    ModelInfo,
    Origin,
    Prompt,
    Quality,
    Request,
    ScoreRequest,
    Scores,
    Started,
    Timing,
    Tokens,
    Usage,
)
from ..common.validate import check_prompt_length, check_request, check_score_request
from .answer import Answer
from .chooser import Course
from .intake import Situation, fill, goes_up_whole, limits, speaks_foreign
from .node import EdgeNode
from .session import Session, Terms
from .tab import Tab
from .tenants import Grant
from .visits import Errand, Visits

_LONG_TEXT = 20_000
"""Characters from which on a prompt is tokenized in a thread: about 10 ms of the event loop's time."""


@dataclass(slots=True)
class _Running:
    """A request in progress."""

    request: Request
    grant: Grant
    begun: float
    task: asyncio.Task[Finished] | None = None
    cancelled: bool = False
    first_s: float | None = None
    recorder: Recorder = field(default_factory=Recorder)


class EdgeService:
    """Answers for one node."""

    def __init__(self, node: EdgeNode, upstream_channel: grpc.aio.Channel) -> None:
        self._node = node
        self._channel = upstream_channel
        self._running: dict[tuple[str, str], _Running] = {}
        self.draining = False

    def authenticate(self, metadata: Mapping[str, str]) -> Caller:
        """The tenant of the key, by the router's policy. Raises Unauthenticated, or Unavailable without a policy."""
        key = bearer(metadata)
        return Caller(self._node.tenants.authenticate(key).name, key)

    async def generate(self, request: Request, caller: Caller) -> AsyncGenerator[Event, None]:
        """The answer; see `Session`."""
        begun = time.perf_counter()
        outcome = Cancelled.reason
        try:
            async with contextlib.aclosing(self._answer(request, caller, begun)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        outcome = event.reason.name
                    yield event
        except TiermeshError as error:
            outcome = error.reason
            raise
        finally:
            self._node.metrics.requests.labels(outcome).inc()

    async def score(self, request: ScoreRequest, caller: Caller) -> Scores:
        """The cloud's scores: only it can give them. The caller's own key goes along."""
        situation = self._situation(request.model, Quality.EXACT)
        check_score_request(request, limits(situation, Quality.EXACT))
        if not situation.connected:
            raise self._node.upstream.why_down()
        return await inference_stub.score(self._channel, request, caller.credential)

    async def count_tokens(self, prompt: Prompt, model: str, caller: Caller) -> int:
        """Tokens of the prompt, by the node's own tokenizer."""
        situation = self._situation(model, Quality.EDGE)
        check_request(Request(prompt, max_tokens=1), limits(situation, Quality.EDGE))
        return len(await self._encode(prompt))

    def models(self) -> tuple[ModelInfo, ...]:
        """What the next hop serves, or served when it was last heard; before that, the edge model itself."""
        return self._node.upstream.models or (self._node.own_model(),)

    async def cancel(self, request_id: str, caller: Caller) -> bool:
        """Ends a running request; its stream closes with the reason `cancelled`."""
        running = self._running.get((caller.tenant, request_id))
        if running is None or running.task is None:
            return False
        running.cancelled = True
        return running.task.cancel()

    async def _answer(self, request: Request, caller: Caller, begun: float) -> AsyncGenerator[Event, None]:
        """Admits a request, asks the cache, else runs a session."""
        node = self._node
        if self.draining:
            raise Draining("this edge node is stopping; ask another one")
        grant = node.tenants.grant(request, node.tenants.by_name(caller.tenant))
        situation = self._situation(request.model, grant.quality)
        bounds = limits(situation, grant.quality)
        check_request(request, bounds)
        filled = fill(request, grant)
        prompt_ids: list[int] = []
        if not speaks_foreign(situation, grant.quality):
            prompt_ids = await self._encode(request.prompt)
            check_prompt_length(len(prompt_ids), request.max_tokens, bounds)
        whole = goes_up_whole(situation, grant, len(prompt_ids) + request.max_tokens)
        if (whole or grant.quality is Quality.EXACT) and not situation.connected:
            raise node.upstream.why_down()
        key = self._cache_key(filled, grant, situation, seed_given=request.sampling.seed is not None)
        running = _Running(filled, grant, begun)
        with self._registered(running):
            model = situation.pool or node.own_model()
            yield Started(filled.request_id, model.id, grant.tier.name, grant.quality)
            entry = await node.cache.get(key) if key and filled.cache is CacheControl.USE else None
            if entry is not None:
                took_s = time.perf_counter() - begun
                yield self._noted(running, entry.tokens())
                yield Finished(entry.reason, entry.hit_usage(), (Timing("edge", "cache", took_s),))
                return
            session, shown = self._session(running, prompt_ids, situation, whole)
            async with contextlib.aclosing(self._events(running, session, shown)) as events:
                async for event in events:
                    # Kept before it is told: a client that has heard the end hangs up.
                    kept = isinstance(event, Finished) and running.recorder.entry(event.reason, event.usage)
                    if key and kept:
                        await node.cache.put(key, kept, Keeping(grant.tenant.cache_ttl_s))
                    yield event

    def _situation(self, model: str, quality: Quality) -> Situation:
        node = self._node
        own = quality is Quality.EDGE and model == node.own_model().id
        pool = node.upstream.pool("" if own else model)
        return Situation(
            architecture=node.artifact.architecture,
            pool=pool,
            connected=node.upstream.connected,
            same_ids=pool is not None and node.upstream.speaks(pool),
            wait_s=float("inf") if node.admission.full() else node.admission.wait_s(),
        )

    async def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str) and len(prompt) > _LONG_TEXT:
            return await asyncio.to_thread(self._node.text.encode_prompt, prompt)
        return self._node.text.encode_prompt(prompt)

    def _cache_key(self, request: Request, grant: Grant, situation: Situation, seed_given: bool) -> CacheKey | None:
        """None when the cache plays no part. Units shown alone make an answer this pair's own, so the key says so."""
        allowed = grant.tenant.cache_exact and request.cache is not CacheControl.BYPASS
        if not allowed or not cacheable(request, seed_given):
            return None
        artifact, calibration = self._node.artifact, self._node.pairing.in_force(situation.pool)
        digests = situation.pool.digests if situation.pool else artifact.digests
        measured = calibration.digest if calibration else "uncalibrated"
        pair = f"{grant.quality.value}|{grant.delta!r}|{artifact.digests.model}|{measured}"
        return exact_key(request, grant.tenant.name, digests, pair)

    def _session(
        self, running: _Running, prompt_ids: list[int], situation: Situation, whole: bool
    ) -> tuple[Session, asyncio.Queue[Tokens | None]]:
        node, request, grant = self._node, running.request, running.grant
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grant.deadline_s - (time.perf_counter() - running.begun)
        bounded = grant.quality is Quality.BOUNDED
        terms = Terms(
            quality=grant.quality,
            delta=grant.delta,
            may_degrade=bounded and grant.tenant.degraded_allowed and node.config.degraded_allowed,
            deadline=deadline,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs > 0,
            foreign=speaks_foreign(situation, grant.quality),
        )
        errand = Errand(request, grant.tenant.name, lambda: max(0.001, deadline - loop.time()))
        shown: asyncio.Queue[Tokens | None] = asyncio.Queue()
        cloud = situation.pool.digests.model if situation.pool else None
        session = Session(
            prompt_ids,
            terms,
            Answer(node.text.detokenizer(request.stop), node.end_ids(request), request.max_tokens),
            Course(node.pace, may_be_alone=bounded),
            node.trust(request),
            node.ledgers.tab(grant.tenant.name, cloud, grant.delta) if bounded else Tab(None),
            node.upstream,
            Visits(node.upstream.link, errand),
            node.drafts(request, len(prompt_ids)),
            shown.put_nowait,
            handed_over=whole,
        )
        return session, shown

    async def _events(
        self, running: _Running, session: Session, shown: asyncio.Queue[Tokens | None]
    ) -> AsyncGenerator[Event, None]:
        """What the session shows, then its end. Closing this ends the session, and waits until it has let go."""
        task = running.task = asyncio.create_task(session.run())
        task.add_done_callback(lambda _: shown.put_nowait(None))
        try:
            while (tokens := await shown.get()) is not None:
                yield self._noted(running, tokens)
            if task.cancelled() and running.cancelled:
                yield session.finished(FinishReason.CANCELLED)
            else:
                yield task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.shield(asyncio.gather(task, return_exceptions=True))
            usage = session.finished(session.answer.reason or FinishReason.CANCELLED).usage
            self._settle(running, session, usage)
            if not _refused(task, session):
                self._report(running, session, usage)

    def _noted(self, running: _Running, tokens: Tokens) -> Tokens:
        metrics = self._node.metrics
        if running.first_s is None:
            running.first_s = time.perf_counter() - running.begun
            metrics.ttft.observe(running.first_s)
        metrics.tokens.labels(tokens.origin.value).inc(len(tokens.ids))
        running.recorder.add(tokens)
        return tokens

    def _settle(self, running: _Running, session: Session, usage: Usage) -> None:
        """What an answer that has ended, however it did, leaves in the metrics and for the audits."""
        metrics, answer = self._node.metrics, session.answer
        for decision, count in session.decisions.items():
            metrics.decisions.labels(decision.value).inc(count)
        tab = session.tab
        for cause, count in tab.withheld.items():
            metrics.withheld.labels(cause.value).inc(count)
        metrics.alone_tokens.inc(tab.shown)
        metrics.labels.labels("true").inc(tab.labelled - tab.wrong)
        metrics.labels.labels("false").inc(tab.wrong)
        metrics.degraded.inc(answer.degraded)
        if running.first_s is not None and len(answer.ids) > 1:
            took_s = time.perf_counter() - running.begun
            metrics.tpot.observe((took_s - running.first_s) / (len(answer.ids) - 1))
        ending = () if answer.end_id is None else (answer.end_id,)
        tenant = running.grant.tenant.name
        self._node.audits.ended(tab, running.request, tenant, usage.prompt_tokens, (*answer.ids, *ending))

    def _report(self, running: _Running, session: Session, usage: Usage) -> None:
        """To the router, which charges the tenant for it."""
        request, answer, tab = running.request, session.answer, session.tab
        self._node.upstream.report(
            UsageReport(
                request_id=request.request_id,
                tenant=running.grant.tenant.name,
                tier=request.tier,
                prompt_tokens=usage.prompt_tokens,
                edge_tokens=answer.by_origin[Origin.EDGE],
                cloud_tokens=answer.by_origin[Origin.CLOUD],
                cache_tokens=answer.by_origin[Origin.CACHE],
                alone=usage.alone,
                asks=usage.asks,
                handed_over=usage.handed_over,
                alone_tokens=tab.shown,
                labelled_tokens=tab.labelled,
                wrong_tokens=tab.wrong,
            )
        )

    @contextlib.contextmanager
    def _registered(self, running: _Running) -> Iterator[None]:
        """Keeps the request findable for Cancel. Raises RequestIdReused while another one runs under its id."""
        place = (running.grant.tenant.name, running.request.request_id)
        if place in self._running:
            raise RequestIdReused(f"request id {place[1]!r} is in use by a running request; choose another one")
        self._running[place] = running
        try:
            with self._node.lull.answering():
                yield
        finally:
            del self._running[place]


def _refused(task: asyncio.Task[Finished], session: Session) -> bool:
    """Whether the router refused a tenant over its limit. Charged for that, it would never get in, however it waits."""
    if task.cancelled() or session.answer.ids:
        return False
    return isinstance(task.exception(), QuotaExceeded)

"""Dry runs: what would become of a request that came now. Every check is the request's own; none takes anything.

A verdict is about this moment. It equals what happens to the request as long as nothing else comes between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..common.errors import NoWorkers, TiermeshError
from ..common.explanation import Explanation, Source
from ..common.inference_servicer import Caller
from ..common.types import Request
from .answers import Answers
from .core import Core
from .jobs import Job
from .orders import Order
from .prefixes import keys_of
from .rehearsal import Rehearsed, rehearse
from .sizing import expected_tokens, job_of

_LAST = 1 << 62
"""The rehearsed job's number: later than any, and none is used up."""

Admit = Callable[[Request, Caller], Awaitable[Order]]


class Explainer:
    """Goes through what a request goes through."""

    def __init__(self, core: Core, answers: Answers, admit: Admit) -> None:
        self._core = core
        self._answers = answers
        self._admit = admit

    async def explain(self, tenant: str, request: Request) -> Explanation:
        """The verdict; a refusal is one too, and not raised."""
        dry = _DryRun(self._core, self._answers)
        try:
            order = await self._admit(request, Caller(tenant))
            return await dry.run(order)
        except TiermeshError as error:
            retry = f"; try again in {error.retry_after_s:.1f} s" if error.retry_after_s else ""
            dry.steps.append(f"refused as {error.reason}{retry}")
            return Explanation(False, error, tier=dry.tier, cost=dry.cost, steps=tuple(dry.steps))


class _DryRun:
    """One order's way through the router."""

    def __init__(self, core: Core, answers: Answers) -> None:
        self._core = core
        self._parts = core.parts
        self._answers = answers
        self.steps: list[str] = []
        self.tier = ""
        self.cost = 0.0

    async def run(self, order: Order) -> Explanation:
        """Raises what the request would be refused with."""
        self.tier = order.request.tier
        self._tell_tier(order)
        source = await self._source(order)
        if source == "worker":
            return await self._scheduled(order)
        await self._parts.limits.look(order.tenant, 0)
        words = {"cache": "the cache has the answer", "flight": "an identical request is under way; it joins that"}
        self.steps.append(f"{words[source]}: no slot, no tokens")
        return Explanation(True, tier=self.tier, source=source, starts_in_s=0.0, steps=tuple(self.steps))

    async def _source(self, order: Order) -> Source:
        if self._answers.check(order):
            return "flight"
        model = self._parts.registry.model
        kept = order.shared and order.tenant.cache_exact and model is not None
        if kept and model is not None and await self._parts.store.holds(order.key(model.digests)):
            return "cache"
        return "worker"

    async def _scheduled(self, order: Order) -> Explanation:
        parts, model = self._parts, self._parts.registry.model
        prompt, expected = expected_tokens(parts, order, model.id if model else "")
        await parts.limits.look(order.tenant, prompt + expected)
        self.steps.append(f"within the tenant's limits: about {prompt} prompt and {expected:.0f} answer tokens")
        job = job_of(parts, order, prompt, expected, _LAST, order.deadline)
        self.cost = job.cost
        rehearsed = rehearse(parts.slots.scheduler, job, parts.clock.now())
        if rehearsed.error is not None:
            raise rehearsed.error
        worker = parts.registry.pick(keys=keys_of(order.tenant.name, order.request.prompt))
        if worker is None:
            raise NoWorkers("no worker is ready; try again soon", retry_after_s=1.0)
        self._tell_place(job, rehearsed)
        self.steps.append(f"now it would go to {worker.address}, which has {worker.in_flight} of {worker.limit}")
        return Explanation(
            True,
            tier=self.tier,
            source="worker",
            place=rehearsed.place,
            starts_in_s=rehearsed.wait_s,
            worker=worker.address,
            cost=job.cost,
            service_s=job.service_s,
            steps=tuple(self.steps),
        )

    def _tell_tier(self, order: Order) -> None:
        why = "as asked" if order.asked.tier else "the tenant's default"
        deadline_s = order.deadline - self._parts.clock.now()
        self.steps.append(f"tier {self.tier}, {why}; to be done in {deadline_s:.1f} s")

    def _tell_place(self, job: Job, rehearsed: Rehearsed) -> None:
        scheduler = self._parts.slots.scheduler
        running, waiting = scheduler.demand(job.tenant)
        if rehearsed.wait_s == 0.0 and scheduler.running >= scheduler.slots:
            self.steps.append("no slot is free, and it would soon be late: it starts, and a lower tier gives way")
            return
        if rehearsed.wait_s == 0.0:
            self.steps.append(f"a slot is free ({scheduler.running} of {scheduler.slots} taken): it starts at once")
            return
        start = "" if rehearsed.wait_s is None else f", and start in {rehearsed.wait_s:.1f} s"
        taken = min(scheduler.running, scheduler.slots)
        self.steps.append(
            f"it would wait for {rehearsed.place} others{start}; {taken} of {scheduler.slots} slots are "
            f"taken, {running} by this tenant, of which {waiting} requests wait"
        )

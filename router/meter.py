"""Times and counts of one answer."""

from __future__ import annotations

from dataclasses import replace

from ..common.frames import RelayFinished
from ..common.types import Finished, Timing
from .dispatch import Work
from .estimates import actual_cost
from .jobs import Job
from .orders import Order
from .parts import Parts


class Meter:
    """Times and counts of one answer, for its bill, the estimates and the metrics."""

    def __init__(self, parts: Parts, order: Order, model: str, prompt: int, heard: int) -> None:
        self._parts = parts
        self._order = order
        self._model = model
        self._prompt = prompt
        self._cached = 0
        self._heard = heard
        """Ids that came from elsewhere before this computation."""
        self._output = 0
        self._begun = parts.clock.now()
        self._dispatched: float | None = None
        self._first: float | None = None
        self._expected_s = 0.0
        """From the dispatch to the end."""
        self._whole = False

    @property
    def used(self) -> float:
        """Tokens for the tenant's limit: nothing before the dispatch."""
        return 0.0 if self._dispatched is None else float(self._prompt + self._output)

    @property
    def cost(self) -> float:
        """Work done, as the scheduler counts it."""
        return 0.0 if self._dispatched is None else actual_cost(self._prompt - self._cached, self._output)

    def dispatched(self, job: Job) -> None:
        """The slot is ours."""
        self._dispatched = self._parts.clock.now()
        self._expected_s = job.service_s
        self._parts.metrics.queued(self._order.request.tier, self._dispatched - self._begun)

    def tokens(self, count: int) -> None:
        """So many more ids came."""
        if self._first is None and count:
            self._first = self._parts.clock.now()
            self._parts.metrics.first_token(self._order.request.tier, self._first - self._begun)
        self._output += count

    def finished(self, frame: RelayFinished, work: Work) -> Finished:
        """The closing event, with the router's own time and the bill."""
        now = self._parts.clock.now()
        request, usage = self._order.request, frame.usage
        assert self._dispatched is not None
        self._prompt = usage.prompt_tokens or self._prompt
        self._cached = usage.cached_prompt_tokens
        self._whole = True
        self._learn(work, now)
        if self._first is not None:
            self._parts.metrics.tpot(request.tier, now - self._first, self._output)
        if self._order.metered:
            self._parts.metrics.tokens("cloud", self._output)
        queue = Timing("router", "queue", self._dispatched - self._begun)
        usage = replace(usage, billed_tokens=usage.prompt_tokens + usage.completion_tokens)
        return Finished(frame.reason, usage, (queue, *frame.timings))

    def ended(self) -> None:
        """Nothing more comes. What broke off says something too if it had been expected to be done by then."""
        if self._dispatched is not None:
            took_s = self._parts.clock.now() - self._dispatched
            if self._whole or took_s > self._expected_s:
                tenant, tier = self._order.tenant.name, self._order.request.tier
                self._parts.estimates.took(tenant, tier, self._expected_s, took_s)

    def _learn(self, work: Work, now: float) -> None:
        """What the answer says about the next ones; times only where one worker gave all of it."""
        estimates, tenant, request = self._parts.estimates, self._order.tenant.name, self._order.request
        estimates.finished(tenant, self._model, request.max_tokens, self._heard + self._output)
        estimates.read(tenant, request.prompt, self._prompt, self._cached)
        whole = work.attempts == 1 and not self._heard
        if self._first is not None and self._dispatched is not None and whole:
            further = self._output - 1
            tpot_s = (now - self._first) / further if further > 0 else None
            ttft_s = self._first - self._dispatched
            estimates.workers.timed(work.worker, self._prompt - self._cached, ttft_s, work.batch, tpot_s)

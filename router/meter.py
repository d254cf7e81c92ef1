"""Times and counts of one answer."""

from __future__ import annotations

from dataclasses import replace

from ..common.frames import RelayFinished
from ..common.types import Finished, Timing
from .estimates import actual_cost
from .orders import Order
from .parts import Parts


class Meter:
    """Times and counts of one answer, for its bill, the estimates and the metrics."""

    def __init__(self, parts: Parts, order: Order, prompt: int, heard: int) -> None:
        self._parts = parts
        self._order = order
        self._prompt = prompt
        self._heard = heard
        """Ids that came from elsewhere before this computation."""
        self._output = 0
        self._begun = parts.clock.now()
        self._dispatched: float | None = None
        self._first: float | None = None

    @property
    def used(self) -> float:
        """Tokens for the tenant's limit: nothing before the dispatch."""
        return 0.0 if self._dispatched is None else float(self._prompt + self._output)

    @property
    def cost(self) -> float:
        """Work done, as the scheduler counts it."""
        return 0.0 if self._dispatched is None else actual_cost(self._prompt, self._output)

    def dispatched(self) -> None:
        """The slot is ours."""
        self._dispatched = self._parts.clock.now()
        self._parts.metrics.queued(self._order.request.tier, self._dispatched - self._begun)

    def tokens(self, count: int) -> None:
        """So many more ids came."""
        if self._first is None and count:
            self._first = self._parts.clock.now()
            self._parts.metrics.first_token(self._order.request.tier, self._first - self._begun)
        self._output += count

    def finished(self, frame: RelayFinished) -> Finished:
        """The closing event, with the router's own time and the bill."""
        now = self._parts.clock.now()
        request, usage = self._order.request, frame.usage
        assert self._dispatched is not None
        self._prompt = usage.prompt_tokens or self._prompt
        whole = self._heard + self._output
        self._parts.estimates.finished(self._order.tenant.name, request.max_tokens, request.prompt, self._prompt, whole)
        if self._first is not None:
            ttft_s = self._first - self._dispatched
            self._parts.estimates.timed(self._prompt, ttft_s, now - self._first, self._output)
            self._parts.metrics.tpot(request.tier, now - self._first, self._output)
        if self._order.metered:
            self._parts.metrics.tokens("cloud", self._output)
        queue = Timing("router", "queue", self._dispatched - self._begun)
        usage = replace(usage, billed_tokens=usage.prompt_tokens + usage.completion_tokens)
        return Finished(frame.reason, usage, (queue, *frame.timings))

"""Fairness between the tenants of one tier: weighted virtual token counters.

After "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024, VTC): of the tenants that wait, the one with
the smallest counter is served, and a served cost ĉ moves its counter by ĉ ÷ weight; what the job turns out to cost
corrects that. A tenant that begins to wait, or comes below its own limit again, can't have saved up: its counter is
lifted to the lowest of those that wait, or when there is none to that of the last who did, below its limit.

At its last call, when it must start to end by its deadline, a job goes before its turn: who was taken in is brought
home, and the rest of the overload is refused. That may leave its tenant no further ahead than a turn can.

The bound, for two tenants a and b that both wait and are below their limits all the time. Let c′ be a counter with the
errors of its running jobs already put in, so that it moves by dispatches alone, and E the sum of |actual − ĉ| ÷ weight
over what runs of either. A dispatch goes to the smaller counter, or at a last call to one that it moves to c_max ÷ w
above the smallest at most, and a difference of counters is that of the c′ within E. So after it the c′ of who was
served exceeds the other's by at most c_max ÷ w + E; a lift begins no further apart.
The service that a had beyond b in any such span of time is the sum of two such gaps, one at either end: with w the
smaller weight, at most R jobs running (slots and room) and e the largest error per weight, at most 2·c_max ÷ w + 2·R·e.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .backlog import Backlog, Waiting
from .moments import Moments


class Ahead(NamedTuple):
    """Cost that is served before a job."""

    cost: float
    own: float
    """Of its tenant, as a part of it."""


class FairQueue:
    """The waiting jobs of one tier. Whom to serve next costs O(log n) in the tenants that wait."""

    def __init__(self) -> None:
        self._all: dict[str, Backlog] = {}
        self._waiting: dict[str, Backlog] = {}
        self._limited: set[str] = set()
        """Tenants that run as much as they may."""
        self._joining: set[str] = set()
        """Who waits below its limit, and is lifted before the next is served."""
        self._level: set[str] = set()
        """Who waits below its limit, with a counter that may be compared with those of the others here."""
        self._order: list[tuple[float, str]] = []
        """A heap of their counters, with some that have changed since."""
        self._last = ""
        """Who last stopped waiting, or came to its limit."""
        self._jobs: dict[int, str] = {}
        """Their tenants, in the order in which they came."""
        self._turns = Moments(self._jobs)
        """When they will be late."""
        self._calls = Moments(self._jobs)
        """Their last calls."""
        self._called: dict[int, None] = {}
        """Those whose last call has come, as far as `sort_out` was told the time."""
        self.eligible = 0
        """Jobs whose tenants are below their limits."""
        self.late = 0
        """How many are, as far as `sort_out` was told the time."""
        self._watched: dict[str, float] = {}
        """When who waits below its limit will have a late job, at the earliest."""
        self._watch_order: list[tuple[float, str]] = []
        """A heap of that, with some that have changed since."""

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def newest(self) -> int | None:
        """The job that came last."""
        return next(reversed(self._jobs), None)

    @property
    def has_eligible(self) -> bool:
        """Whether somebody waits for a slot alone, so that `first` has an answer."""
        return bool(self._joining or self._level)

    @property
    def late_from(self) -> float:
        """When the next job that waits for a slot alone will be late; endless where none will."""
        while self._watch_order:
            at, tenant = self._watch_order[0]
            if self._watched.get(tenant) == at:
                if self._is_eligible(tenant) and self._waiting[tenant].late_from == at:
                    return at
                del self._watched[tenant]
            heapq.heappop(self._watch_order)
            self._watch(tenant)
        return math.inf

    def waiting(self, tenant: str) -> int:
        """Jobs of a tenant that wait."""
        return len(self._waiting.get(tenant, ()))

    def cost_of(self, tenant: str) -> float:
        """Cost of a tenant's jobs."""
        own = self._waiting.get(tenant)
        return own.cost if own else 0.0

    def push(self, tenant: str, item: Waiting, weight: float, now: float) -> None:
        """A job arrives."""
        backlog = self._all.setdefault(tenant, Backlog())
        backlog.weight = weight
        if tenant not in self._waiting:
            self._waiting[tenant] = backlog
            if tenant not in self._limited:
                self._joining.add(tenant)
        backlog.push(item, now)
        self.eligible += tenant not in self._limited
        self._jobs[item.job] = tenant
        self._turns.add(item.on_time_until, item.job)
        self._calls.add(item.last_call, item.job)
        self._watch(tenant)

    def remove(self, tenant: str, job: int, now: float) -> None:
        """A job leaves, served or not."""
        backlog = self._waiting[tenant]
        late = backlog.late
        backlog.remove(job, now)
        self.eligible -= tenant not in self._limited
        self.late += backlog.late - late
        del self._jobs[job]
        self._called.pop(job, None)
        if not backlog:
            del self._waiting[tenant]
            self._leave(tenant)

    def limit(self, tenant: str) -> None:
        """It runs as much as it may."""
        if tenant not in self._limited:
            self._limited.add(tenant)
            if tenant in self._waiting:
                self.eligible -= len(self._waiting[tenant])
                self._leave(tenant)

    def free(self, tenant: str) -> None:
        """It may run more."""
        if tenant in self._limited:
            self._limited.discard(tenant)
            if tenant in self._waiting:
                self.eligible += len(self._waiting[tenant])
                self._joining.add(tenant)
                self._watch(tenant)

    def sort_out(self, now: float) -> None:
        """Time went by: some jobs are late now, and go behind the others of their tenant; some have their last call."""
        for job in self._turns.past(now):
            backlog = self._waiting[self._jobs[job]]
            late = backlog.late
            backlog.sort_out(now)
            self.late += backlog.late - late
        for job in self._calls.past(now):
            self._called[job] = None

    def first(self, now: float) -> tuple[str, Waiting]:
        """The tenant and job to serve next; some eligible tenant must wait."""
        self.sort_out(now)
        tenant = self._next()
        return tenant, self._waiting[tenant].first(now)

    def called(self, now: float, most: float) -> tuple[str, Waiting] | None:
        """The first at its last call that may go before its turn, if there is one; `most` is what a turn can cost."""
        self.sort_out(now)
        for job in self._called:
            tenant = self._jobs[job]
            if self._is_eligible(tenant):
                item, backlog = self._waiting[tenant][job], self._waiting[tenant]
                least = self._waiting[self._next()].counter
                if (backlog.counter - least) * backlog.weight + item.cost <= most:
                    return tenant, item
        return None

    def charge(self, tenant: str, service: float) -> None:
        """Moves a counter by cost ÷ weight: at a dispatch, and by what the job cost more (or less) when it ends."""
        if backlog := self._all.get(tenant):
            backlog.counter += service
            if tenant in self._level:
                self._rank(tenant)

    def waited(self, tenant: str, item: Waiting, now: float) -> None:
        """A job that had to wait has left for a slot."""
        self._all[tenant].served(item, now)

    def own_wait_s(self, tenant: str, cost: float, wary: bool = False) -> float:
        """Until a tenant has been given this much; 0 where nothing was measured."""
        backlog = self._all.get(tenant)
        return backlog.drain.seconds(cost, wary) if backlog else 0.0

    def late_wait_s(self, tenant: str, cost: float) -> float:
        """Until its late jobs and one more of this cost have been served before their last call; 0 where nothing was
        measured, endless if nothing is given to them."""
        backlog = self._all.get(tenant)
        if backlog is None:
            return 0.0
        return math.inf if backlog.late_drain.stuck else backlog.late_drain.seconds(backlog.late_cost + cost)

    def ahead(self, tenant: str, cost: float, weight: Callable[[str], float], promised: Mapping[str, float]) -> Ahead:
        """What is served before a job of this cost that came now, when no other comes but those `promised`.

        The tenant's own jobs are, and of each other tenant as much as its weight earns in the same time: a flood of one
        tenant does not make the others wait for all of it. What a tenant is promised a place for counts with them.
        """
        total = own = self.cost_of(tenant) + promised.get(tenant, 0.0)
        per_weight = (own + cost) / weight(tenant)
        for name, backlog in self._waiting.items():
            if name != tenant:
                other = backlog.cost + promised[name] if name in promised else backlog.cost
                most = per_weight * backlog.weight
                total += other if other < most else most
        for name, expected in promised.items():
            if name != tenant and name not in self._waiting:
                total += min(expected, per_weight * weight(name))
        return Ahead(total, own)

    def share(self, tenant: str, weight: Callable[[str], float]) -> float:
        """Of the tier's service, what a tenant gets while those who wait now go on waiting."""
        others = sum(backlog.weight for name, backlog in self._waiting.items() if name != tenant)
        return weight(tenant) / (weight(tenant) + others)

    def _is_eligible(self, tenant: str) -> bool:
        return tenant in self._level or tenant in self._joining

    def _watch(self, tenant: str) -> None:
        at = self._waiting[tenant].late_from if self._is_eligible(tenant) else math.inf
        if at < self._watched.get(tenant, math.inf):
            self._watched[tenant] = at
            heapq.heappush(self._watch_order, (at, tenant))

    def _leave(self, tenant: str) -> None:
        self._joining.discard(tenant)
        if tenant in self._level:  # else its counter was never lifted, and says nothing of where the others stand
            self._level.discard(tenant)
            self._last = tenant

    def _lift(self) -> None:
        least = self._least() or self._last
        floor = self._all[least].counter if least else 0.0
        for tenant in self._joining:
            backlog = self._waiting[tenant]
            backlog.counter = max(backlog.counter, floor)
            self._level.add(tenant)
            self._rank(tenant)
        self._joining.clear()

    def _next(self) -> str:
        """The tenant whose turn it is; some eligible tenant must wait."""
        if self._joining:
            self._lift()
        tenant = self._least()
        assert tenant is not None, "somebody eligible waits"
        return tenant

    def _least(self) -> str | None:
        while self._order:
            counter, tenant = self._order[0]
            if tenant in self._level and self._waiting[tenant].counter == counter:
                return tenant
            heapq.heappop(self._order)
        return None

    def _rank(self, tenant: str) -> None:
        heapq.heappush(self._order, (self._all[tenant].counter, tenant))
        if len(self._order) > 4 * len(self._level) + 64:  # most have changed since
            self._order = [(self._waiting[name].counter, name) for name in self._level]
            heapq.heapify(self._order)

"""Fairness between the tenants of one tier: weighted virtual token counters.

After "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024, VTC): of the tenants that wait, the one with
the smallest counter is served, and a served cost ĉ moves its counter by ĉ ÷ weight; what the job turns out to cost
corrects that. A tenant that begins to wait, or comes below its own limit again, can't have saved up: its counter is
lifted to the lowest of those that wait, or when there is none to that of the last who did, below its limit.

The bound, for two tenants a and b that both wait and are below their limits all the time. Let c′ be a counter with the
errors of its running jobs already put in, so that it moves by dispatches alone, and E the sum of |actual − ĉ| ÷ weight
over what runs of either. A dispatch goes to the smaller counter, and a difference of counters is that of the c′ within
E. So after it the c′ of who was served exceeds the other's by at most c_max ÷ w + E; a lift begins no further apart.
The service that a had beyond b in any such span of time is the sum of two such gaps, one at either end: with w the
smaller weight, at most `slots` jobs running and e the largest error per weight, at most 2·c_max ÷ w + 2·slots·e.
"""

from __future__ import annotations

from collections.abc import Callable

from .backlog import Backlog, Waiting

Eligible = Callable[[str], bool]
"""Whether a tenant is below its own limit."""


class FairQueue:
    """The waiting jobs of one tier."""

    def __init__(self) -> None:
        self._all: dict[str, Backlog] = {}
        self._waiting: dict[str, Backlog] = {}
        self._last = ""
        """Who last stopped waiting, or came to its limit."""
        self._jobs: dict[int, None] = {}
        """In the order in which they came."""

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def newest(self) -> int | None:
        """The job that came last."""
        return next(reversed(self._jobs), None)

    def waiting(self, tenant: str) -> int:
        """Jobs of a tenant that wait."""
        return len(self._waiting.get(tenant, ()))

    def push(self, tenant: str, item: Waiting) -> None:
        """A job arrives."""
        backlog = self._all.setdefault(tenant, Backlog())
        if tenant not in self._waiting:
            backlog.level_with_others = False
            self._waiting[tenant] = backlog
        backlog.push(item)
        self._jobs[item.job] = None

    def remove(self, tenant: str, job: int) -> None:
        """A job leaves, served or not."""
        backlog = self._waiting[tenant]
        backlog.remove(job)
        del self._jobs[job]
        if not backlog:
            del self._waiting[tenant]
            self._last = tenant

    def has_eligible(self, eligible: Eligible) -> bool:
        """Whether `first` has an answer."""
        return any(eligible(tenant) for tenant in self._waiting)

    def first(self, eligible: Eligible, now: float) -> tuple[str, Waiting]:
        """The tenant and job to serve next; some eligible tenant must wait."""
        self._lift(eligible)
        tenant = min(filter(eligible, self._waiting), key=lambda name: (self._waiting[name].counter, name))
        return tenant, self._waiting[tenant].first(now)

    def charge(self, tenant: str, service: float) -> None:
        """Moves a counter by cost ÷ weight: at a dispatch, and by what the job cost more (or less) when it ends."""
        if backlog := self._all.get(tenant):
            backlog.counter += service

    def ahead(self, tenant: str, cost: float, weight: Callable[[str], float]) -> float:
        """Cost that is served before a job of this cost that came now, when no other comes.

        The tenant's own jobs are, and of each other tenant as much as its weight earns in the same time: a flood of one
        tenant does not make the others wait for all of it.
        """
        own = self._waiting.get(tenant)
        before = own.cost if own else 0.0
        per_weight = (before + cost) / weight(tenant)
        others = (
            min(backlog.cost, per_weight * weight(name)) for name, backlog in self._waiting.items() if name != tenant
        )
        return before + sum(others)

    def share(self, tenant: str, weight: Callable[[str], float]) -> float:
        """Of the tier's service, what a tenant gets while those who wait now go on waiting."""
        others = sum(weight(name) for name in self._waiting if name != tenant)
        return weight(tenant) / (weight(tenant) + others)

    def _lift(self, eligible: Eligible) -> None:
        for name, backlog in self._waiting.items():
            if backlog.level_with_others and not eligible(name):
                backlog.level_with_others = False
                self._last = name
        level = [backlog.counter for backlog in self._waiting.values() if backlog.level_with_others]
        floor = min(level) if level else self._all[self._last].counter if self._last else 0.0
        for name, backlog in self._waiting.items():
            if not backlog.level_with_others and eligible(name):
                backlog.level_with_others = True
                backlog.counter = max(backlog.counter, floor)

"""Places that are kept for those who were refused and told when to come back.

A delay that is told is a promise: its request has a place in the order from then on, behind what waits and what was
promised before, and who comes first later stands behind it. A request is known again by what it asks for, so that no
client has to say that it comes back. Whose place is due is taken in ahead of all who have none; who comes too early
keeps the place and is told the same time again.

Not everybody comes back. A place counts as much as the tenant's last promises in the tier were taken up; one that
nobody takes up in time is given away. So where nobody ever comes back, nobody is kept out for them.

The bounds: a tenant has at most as many places in a tier as it may have requests waiting, none further away than
`MAX_DELAY_S`. Where there is none to give, no delay is told, since none would be true. Places of one tenant are ahead
of others like its waiting requests are, by its share alone (`FairQueue.ahead`).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .averages import Decayed
from .jobs import Job

MAX_DELAY_S = 30.0
"""As far ahead as a rate that was measured in the last half minute can be trusted to hold."""
MIN_DELAY_S = 0.1
GRACE_S, LONGEST_GRACE_S = 1.0, 5.0
"""How long a place stays when it is due, and a quarter of the delay longer, and at most: clients add jitter, and some
count in whole seconds."""
EARLY_S = 0.05
"""How much too early is in time: timers are not exact."""
_HALF_LIFE = 16.0
"""Promises after which what became of one counts half."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A place."""

    due: float
    """Monotonic seconds."""
    until: float
    """When it is given away."""
    cost: float


class Places:
    """Of one tenant in one tier."""

    def __init__(self) -> None:
        self.taken_up = Decayed(1.0, _HALF_LIFE)
        """The share of the promises that somebody comes back for; before any, all are expected to."""
        self.taken_up.add(1.0)
        self._open: dict[int, Promise] = {}
        self._cost = 0.0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def expected(self) -> float:
        """Cost of those who will come back."""
        return self._cost * self.taken_up.value

    @property
    def expected_count(self) -> float:
        """How many will come back."""
        return len(self._open) * self.taken_up.value

    def get(self, identity: int) -> Promise | None:
        """What this request was promised."""
        return self._open.get(identity)

    def expected_before(self, due: float) -> float:
        """Cost of those who will come back and were to come before this time."""
        return sum(promise.cost for promise in self._open.values() if promise.due < due) * self.taken_up.value

    def put(self, identity: int, promise: Promise) -> None:
        """One more."""
        self._open[identity] = promise
        self._cost += promise.cost

    def drop(self, identity: int) -> None:
        """One less."""
        promise = self._open.pop(identity)
        self._cost = self._cost - promise.cost if self._open else 0.0


class Promises:
    """All that are open."""

    def __init__(self, tiers: Sequence[str]) -> None:
        self._all: dict[str, dict[str, Places]] = {tier: {} for tier in tiers}
        self._open: dict[str, dict[str, Places]] = {tier: {} for tier in tiers}
        """Those in which a place is kept, by tier and tenant."""
        self._ends: list[tuple[float, str, str, int]] = []

    def of(self, job: Job) -> Promise | None:
        """What this job was promised when it came before."""
        places = self._open[job.tier].get(job.tenant)
        return places.get(job.identity) if places else None

    def ahead(self, job: Job, promise: Promise | None) -> Mapping[str, float]:
        """Cost by tenant that is expected back in this tier before a job that has this promise, or none."""
        found = {tenant: places.expected for tenant, places in self._open[job.tier].items()}
        if promise is not None:
            found[job.tenant] = self._open[job.tier][job.tenant].expected_before(promise.due)
        return found

    def hold(self, job: Job) -> bool:
        """Whether its tenant has places in the tier, and most of those who were given one come back."""
        places = self._open[job.tier].get(job.tenant)
        return places is not None and places.taken_up.value >= 0.5

    def expected(self, tenant: str) -> float:
        """How many of a tenant's requests will come back, in all tiers."""
        return sum(open_of[tenant].expected_count for open_of in self._open.values() if tenant in open_of)

    def make(self, job: Job, cost: float, delay_s: float, most: int, now: float) -> float | None:
        """Keeps a place for a job that could be taken after `delay_s`, and returns what to tell it; None without one.

        `cost` is the job's in the schedule, `most` how many places its tenant may have in the tier.
        """
        places = self._all[job.tier].setdefault(job.tenant, Places())
        before = places.get(job.identity)
        if before is not None and before.due > now + EARLY_S:
            return before.due - now
        if before is not None:
            self._drop(job.tier, job.tenant, job.identity, taken_up=True)
        delay_s = max(delay_s, MIN_DELAY_S)
        if delay_s > MAX_DELAY_S or len(places) >= most or not job.identity:
            return None
        until = now + delay_s + min(GRACE_S + delay_s / 4, LONGEST_GRACE_S)
        places.put(job.identity, Promise(now + delay_s, until, cost))
        self._open[job.tier][job.tenant] = places
        heapq.heappush(self._ends, (until, job.tier, job.tenant, job.identity))
        return delay_s

    def taken(self, job: Job) -> None:
        """It was taken in; if it had a place, the place is its own now."""
        if self.of(job) is not None:
            self._drop(job.tier, job.tenant, job.identity, taken_up=True)

    def passed(self, now: float) -> None:
        """Gives away what nobody has come for."""
        while self._ends and self._ends[0][0] <= now:
            _, tier, tenant, identity = heapq.heappop(self._ends)
            promise = self._all[tier][tenant].get(identity)
            if promise is not None and promise.until <= now:  # else it was kept, and perhaps made anew
                self._drop(tier, tenant, identity, taken_up=False)

    def _drop(self, tier: str, tenant: str, identity: int, *, taken_up: bool) -> None:
        places = self._open[tier][tenant]
        places.drop(identity)
        places.taken_up.add(float(taken_up))
        if not places:
            del self._open[tier][tenant]

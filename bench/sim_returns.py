"""Simulated clients that come back after the delay that they were told, and what came of it.

A share of them does, a little late, as clients are: by up to a tenth of the delay and a fiftieth of a second on the
way. Of some it is probed ten times a second, from their refusal on, whether the schedule would have taken them in by
then; that is the shortest delay that would have worked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..common.errors import Overloaded
from ..router.jobs import Job
from ..router.scheduler import Scheduler
from .sim_workload import Offer

if TYPE_CHECKING:
    from .sim_policies import Policy
    from .sim_run import Outcome

_JITTER = 0.1
_WAY_S = 0.02
_PROBE_S = 0.1
_PROBED = 7
"""One in so many refusals."""
_PATIENT_S = 90.0
"""For which a probe is kept."""


@dataclass(slots=True, eq=False)
class Told:
    """One refusal for want of capacity."""

    at: float
    tier: str
    request: int
    again: int
    delay_s: float | None
    returns_at: float | None
    """When its client comes back; None if it does not."""
    job: Job
    patience_s: float
    probed: bool
    shortest_s: float | None = None
    """After which it would have been taken in, as far as that was probed."""
    back: Outcome | None = None
    """What came of it then."""

    @property
    def taken(self) -> bool:
        """Whether it was taken in when it came back."""
        return self.back is not None and self.back.taken

    @property
    def in_time(self) -> bool:
        """Whether it then had its first token within its tier's budget and its last by its deadline."""
        return self.back is not None and self.back.attained

    @property
    def shortest_worked_s(self) -> float | None:
        """The shortest delay that is known to have worked, of those that were probed."""
        if not self.probed:
            return None
        told_s = self.back.offer.at - self.at if self.back is not None and self.taken else None
        found = [delay_s for delay_s in (self.shortest_s, told_s) if delay_s is not None]
        return min(found, default=None)


class Returns:
    """Remembers refusals and brings a share of their clients back."""

    def __init__(self, seed: int, share: float = 1.0) -> None:
        self.told: list[Told] = []
        self._rng = random.Random(seed)
        self._share = share
        self._open: dict[int, Told] = {}
        """Those whose clients are on their way, by request."""
        self._probed: list[Told] = []
        self._next = 0.0

    @property
    def next_probe(self) -> float:
        """When `probe` wants to be called."""
        return self._next if self._probed else float("inf")

    def refused(self, outcome: Outcome, now: float) -> Sequence[Offer]:
        """A client hears that; it may come back."""
        if not isinstance(outcome.refused, Overloaded):
            return []
        offer, delay_s = outcome.offer, outcome.refused.retry_after_s
        back = None
        if delay_s is not None and self._rng.random() < self._share:
            back = now + delay_s * (1 + _JITTER * self._rng.random()) + _WAY_S * self._rng.random()
        told = Told(
            now,
            outcome.job.tier,
            offer.request,
            offer.again,
            delay_s,
            back,
            outcome.job,
            outcome.tier.deadline_s,
            len(self.told) % _PROBED == 0,
        )
        self.told.append(told)
        if told.probed:
            self._next = now + _PROBE_S if not self._probed else self._next
            self._probed.append(told)
        if back is None:
            return []
        self._open[offer.request] = told
        return [replace(offer, at=back, again=offer.again + 1)]

    def arrived(self, outcome: Outcome) -> None:
        """Somebody came; perhaps not for the first time."""
        if (told := self._open.pop(outcome.offer.request, None)) is not None:
            told.back = outcome

    def probe(self, policy: Policy, now: float) -> None:
        """Whether those who are probed would be taken in if they came now."""
        if now < self._next or not isinstance(policy, Scheduler):
            return
        self._next = now + _PROBE_S
        for told in self._probed:
            if policy.would_take(replace(told.job, deadline=now + told.patience_s), now):
                told.shortest_s = now - told.at
        self._probed = [told for told in self._probed if told.shortest_s is None and now < told.at + _PATIENT_S]

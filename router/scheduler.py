"""Who runs next. No I/O and no clock of its own: arrivals, completions and the time come in, decisions go out.

Each rule has a page: which tier (`lags.py`), which of its tenants (`fair.py`), which of that tenant's jobs
(`backlog.py`), who is not taken in at all (`admission.py`) and when to come back then (`promises.py`). The bounds that
hold are stated there.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from ..common.errors import DeadlineExceeded, TiermeshError
from .admission import Admission, NoPlace
from .backlog import Waiting, level
from .demand import Demand
from .fair import FairQueue
from .jobs import Decision, Dispatch, Job, Refusal, TenantRule, TierRule
from .lags import Lags

SLICE_TOKENS = 1024.0
"""Service after which a conversation sinks by a level, in cost."""
_TO_SPARE, _WAITED = 3.0, 0.75
"""The last call of a job comes when this many times its expected time is left to its deadline, but not before it has
waited for so much of the time in which it must start: a short deadline alone puts nobody before others."""
_APART = 4
"""While a job of the highest tier presses, one of so many dispatches goes to a last call of a lower tier at most. On
the mesh they press for half a second at a time; if calls waited for that, some were lost."""
_PRESSING = 0.5
"""A job of the highest tier presses when so much of its TTFT budget is left until it will be late. If each did at once,
somebody would have to give way for each, at 1.5 times the capacity for 0.9 % of the goodput; 0.3 is about as good."""
_LATENCY_SENSITIVE = 1.5
"""How much longer a slice of the highest tier is: it serves those who wait for each turn."""


@dataclass(frozen=True, slots=True)
class _Held:
    job: Job
    arrived: float

    @property
    def patience_s(self) -> float:
        """The time that its client gave it."""
        return self.job.deadline - self.arrived


class Scheduler:
    """Decides; the caller carries out. Each arrived job gets exactly one decision unless it is cancelled first."""

    def __init__(
        self,
        tiers: Sequence[TierRule],
        tenant: Callable[[str], TenantRule],
        *,
        largest_cost: float,
        max_queued: int = 1024,
        alpha: float = 0.0,
    ) -> None:
        self._rules = {tier.name: tier for tier in tiers}
        self._order = list(self._rules)
        self._highest = self._order[0]
        self._tenant = tenant
        self._c_max = largest_cost
        self._max_queued = max_queued
        self._alpha = alpha
        self._queues = {tier.name: FairQueue() for tier in tiers}
        self._lags = Lags(tiers, largest_cost)
        self._demand = Demand(self._order)
        self._admission = Admission(self._queues, tenant, self._lags, self._demand, largest_cost)
        self._admission.rules = self._rules
        self._waiting: dict[int, _Held] = {}
        self._running: dict[int, Job] = {}
        self._running_of: dict[str, int] = {}
        self._running_in = dict.fromkeys(self._order, 0)
        self._now = -math.inf
        self._deadlines: list[tuple[float, int]] = []
        self._since_call = 0
        """Dispatches since the last one before its turn, that one with them."""
        self.slots = 0
        """How many jobs may run at once; set by the owner at any time."""
        self.room = 0
        """How many more may, while a job of the highest tier presses; set likewise. See `_has_room`."""

    @property
    def running(self) -> int:
        """Jobs that hold a slot, or run beyond them."""
        return len(self._running)

    @property
    def lags(self) -> Mapping[str, float]:
        """Service that each tier is owed, in tokens."""
        return self._lags.all()

    def configure(self, tiers: Sequence[TierRule], alpha: float, max_queued: int | None = None) -> None:
        """Other budgets and shares for the same tiers, another α and length of the queue, and perhaps tenants with
        other rules, from now on."""
        assert [tier.name for tier in tiers] == self._order, "tiers keep their names and order"
        self._rules = self._admission.rules = {tier.name: tier for tier in tiers}
        self._lags.set_shares(tiers)
        self._alpha = alpha
        self._max_queued = max_queued or self._max_queued
        for tenant in self._running_of:
            self.reconsider(tenant)

    def reconsider(self, tenant: str) -> None:
        """A tenant may have come to its limit, or below it. Then call `decide`."""
        below = self._running_of.get(tenant, 0) < self._tenant(tenant).concurrent
        for queue in self._queues.values():
            (queue.free if below else queue.limit)(tenant)

    def twin(self) -> Scheduler:
        """Another one in the same state, to try things on; jobs are shared, since nothing changes them."""
        memo: dict[int, object] = {id(self._tenant): self._tenant}
        memo |= {id(job): job for job in self._running.values()}
        memo |= {id(held): held for held in self._waiting.values()}
        return deepcopy(self, memo)

    def expected_wait_s(self, job: Job) -> float | None:
        """How long a job that came now would wait, beyond those that a slot is free for; None where no rate tells."""
        return self._admission.wait_s(job) or None

    @property
    def running_costs(self) -> Mapping[int, float]:
        """What the jobs that hold a slot count as, in the order in which they got it."""
        return {number: self._cost(job) for number, job in self._running.items()}

    def running_in(self, tier: str) -> int:
        """Jobs of a tier that hold a slot."""
        return self._running_in[tier]

    def demand(self, tenant: str) -> tuple[int, int]:
        """Jobs of a tenant that hold a slot, and that wait."""
        return self._running_of.get(tenant, 0), sum(queue.waiting(tenant) for queue in self._queues.values())

    def queued(self, tier: str) -> int:
        """Jobs of a tier that wait."""
        return len(self._queues[tier])

    def place(self, job: int) -> int:
        """How many jobs of the same or a higher tier wait with this one; 0 when it runs."""
        held = self._waiting.get(job)
        return sum(self.queued(name) for name in self._order[: self._rank(held.job) + 1]) if held else 0

    @property
    def wake_at(self) -> float | None:
        """When `decide` must be called at the latest: a deadline passes, or a job presses and there is room for it."""
        deadline = self._next_deadline()
        if deadline is None or not self._room_left:
            return deadline
        return self._presses_at if self._now < self._presses_at < deadline else deadline

    def arrive(self, job: Job, now: float) -> list[Decision]:
        """Takes a job into its queue. The decisions may refuse it, or one that it pushes out. Then call `decide`."""
        assert job.number not in self._waiting, "job numbers are unique"
        assert job.number not in self._running, "job numbers are unique"
        self._pass(now)
        if objection := self._objection(job, now):
            return [self._refuse(job, objection, now)]
        decisions: list[Decision] = []
        if len(self._waiting) >= self._max_queued and (victim := self._victim(job)) is not None:
            held = self._leave_queue(victim)
            free_s = max(self._admission.turn_s(victim), self._admission.free_s(victim, held.patience_s) or 0.0)
            pushed_out = NoPlace("a request of a higher tier took this one's place", free_s)
            decisions.append(self._refuse(victim, pushed_out, now))
        self._admission.taken(job)
        self._enter_queue(job, now)
        return decisions

    def would_take(self, job: Job, now: float) -> bool:
        """Whether a job that came now would be taken in; changes nothing."""
        return self._objection(job, now) is None

    def decide(self, now: float) -> list[Decision]:
        """Refuses what is past its deadline or can't meet it any more, then fills free slots."""
        self._pass(now)
        decisions: list[Decision] = []
        while (deadline := self._next_deadline()) is not None and deadline <= now:
            job = self._waiting[heapq.heappop(self._deadlines)[1]].job
            self._leave_queue(job)
            error = DeadlineExceeded("the deadline passed while the request waited for a worker; allow more time")
            decisions.append(Refusal(job.number, error))
        while self._has_room(now) and (waiting := self._backlogged()):
            decisions.append(self._next(waiting, now))
        return decisions

    def finish(self, number: int, actual_cost: float, now: float) -> None:
        """A running job has ended, for whatever reason, after this much work. Then call `decide`."""
        self._pass(now)
        if self._is_full:
            self._admission.ended(min(actual_cost, self._c_max))
        job = self._running.pop(number)
        self._running_in[job.tier] -= 1
        self._running_of[job.tenant] -= 1
        if not self._running_of[job.tenant]:
            del self._running_of[job.tenant]
        self.reconsider(job.tenant)
        self._queues[job.tier].charge(job.tenant, (actual_cost - self._cost(job)) / self._weight(job.tenant))

    def cancel(self, number: int, now: float) -> bool:
        """Takes a waiting job out without a decision; False when it does not wait."""
        self._pass(now)
        held = self._waiting.get(number)
        if held is None:
            return False
        self._leave_queue(held.job)
        return True

    def refuse_all(self, error: TiermeshError) -> list[Decision]:
        """Empties all queues."""
        decisions: list[Decision] = []
        for held in list(self._waiting.values()):
            self._leave_queue(held.job)
            decisions.append(Refusal(held.job.number, error))
        return decisions

    def _cost(self, job: Job) -> float:
        return min(job.cost, self._c_max)

    def _weight(self, tenant: str) -> float:
        return self._tenant(tenant).weight

    def _rank(self, job: Job) -> int:
        return self._order.index(job.tier)

    def _next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    @property
    def _is_full(self) -> bool:
        return 0 < self.slots <= len(self._running)

    def _has_room(self, now: float) -> bool:
        """Whether one more may run: in a free slot or, while a job of the highest tier presses, beyond the slots.

        Who is due then is for the rules to say as ever, so that their bounds stand. A worker lets who comes take the
        place of a lower tier (`cloud/preemption.py`); where the highest has all slots, nobody would give way to it.
        """
        return len(self._running) < self.slots or (self._room_left and self._presses_at <= now)

    @property
    def _room_left(self) -> bool:
        of_highest = self._running_in[self._highest]
        return of_highest < self.slots <= len(self._running) < self.slots + self.room

    @property
    def _presses_at(self) -> float:
        """When a job of the highest tier will press, or has begun to; endless where none waits for a slot alone and can
        still be on time."""
        return self._queues[self._highest].late_from - _PRESSING * self._rules[self._highest].ttft_s

    def _backlogged(self) -> list[str]:
        """Tiers with a job that could run if there were a slot, in order."""
        return [name for name, queue in self._queues.items() if queue.has_eligible]

    def _next(self, waiting: Sequence[str], now: float) -> Decision:
        """Gives a slot to the job that is due, or refuses it when it can't be done in time any more."""
        tier, tenant, item = self._due(waiting, now)
        queue = self._queues[tier]
        held = self._waiting[item.job]
        if objection := self._hopeless(held, now):
            self._leave_queue(held.job)
            return self._refuse(held.job, objection, now)
        self._lags.served(tier, item.cost, waiting)
        self._leave_queue(held.job)
        queue.charge(tenant, item.cost / self._weight(tenant))
        if now > held.arrived:
            self._admission.drained(tier, item.cost)
            queue.waited(tenant, item, now)
        self._running[item.job] = held.job
        self._running_in[tier] += 1
        self._running_of[tenant] = self._running_of.get(tenant, 0) + 1
        self.reconsider(tenant)
        return Dispatch(item.job)

    def _due(self, waiting: Sequence[str], now: float) -> tuple[str, str, Waiting]:
        """Tier, tenant and job that are due: at its last call, or whose turn it is."""
        pressing = self._presses_at <= now
        if not self._lags.forces(waiting):
            # Where the highest presses it is the first that waits.
            for tier in waiting if not pressing or self._since_call >= _APART else waiting[:1]:
                if (called := self._queues[tier].called(now, self._c_max)) is not None:
                    self._since_call = 1
                    return tier, *called
        self._since_call += 1
        tier = self._lags.next(waiting, lambda name: self._queues[name].first(now)[1].cost, pressing)
        return tier, *self._queues[tier].first(now)

    def _enter_queue(self, job: Job, now: float) -> None:
        rule = self._rules[job.tier]
        slice_tokens = SLICE_TOKENS * (1.0 if self._rank(job) else _LATENCY_SENSITIVE)
        sunk_s = rule.ttft_s * level(job.attained, slice_tokens)
        key = now + rule.ttft_s + sunk_s + self._alpha * job.service_s
        on_time_until = now + rule.ttft_s - job.first_s
        self._waiting[job.number] = _Held(job, now)
        latest = job.deadline - job.service_s
        last_call = max(job.deadline - _TO_SPARE * job.service_s, now + _WAITED * (latest - now))
        item = Waiting(key, job.number, self._cost(job), on_time_until, last_call)
        self._queues[job.tier].push(job.tenant, item, self._weight(job.tenant), now)
        if len(self._deadlines) > 2 * len(self._waiting) + 64:  # most of its jobs have left the queue
            self._deadlines = [(held.job.deadline, number) for number, held in self._waiting.items()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (job.deadline, job.number))

    def _leave_queue(self, job: Job) -> _Held:
        held = self._waiting.pop(job.number)
        self._queues[job.tier].remove(job.tenant, job.number, self._now)
        if not self.queued(job.tier):
            self._lags.clear(job.tier)
        return held

    def _pass(self, now: float) -> None:
        """Time went by since the last call."""
        for queue in self._queues.values():  # at the same time too: who has come since may be late already
            queue.sort_out(now)
        if now > self._now:
            self._now = now
            jobs = {name: self._running_in[name] + queue.eligible for name, queue in self._queues.items()}
            self._demand.passed(now, jobs, self.slots)
            self._admission.passed(now, self._backlogged(), full=self._is_full)

    def _objection(self, job: Job, now: float) -> TiermeshError | NoPlace | None:
        full = len(self._waiting) >= self._max_queued and self._victim(job) is None
        return self._admission.objection(job, now, full=full)

    def _hopeless(self, held: _Held, now: float) -> NoPlace | None:
        """Why a job that is due can't be done in time any more; one that did not wait is tried."""
        job = held.job
        if now + job.service_s <= job.deadline or now <= held.arrived or not self._admission.waits(job):
            return None
        why = f"it has waited {now - held.arrived:.1f} s and would miss its deadline"
        return NoPlace(why, self._admission.free_s(job, held.patience_s))

    def _refuse(self, job: Job, objection: TiermeshError | NoPlace, now: float) -> Refusal:
        return Refusal(job.number, self._admission.refusal(job, objection, now))

    def _victim(self, job: Job) -> Job | None:
        """The newest job of the lowest tier that waits below this one."""
        for name in reversed(self._order[self._rank(job) + 1 :]):
            if (number := self._queues[name].newest) is not None:
                return self._waiting[number].job
        return None

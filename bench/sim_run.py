"""One simulated run: offers come in, a policy decides, workers answer; the clock jumps from event to event."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..common.errors import TiermeshError
from ..router.choice import room_of
from ..router.estimates import Estimates, actual_cost
from ..router.jobs import LARGEST_COST, Decision, Dispatch, Job, Refusal, TierRule
from ..router.scheduler import Scheduler
from .sim_policies import Policy
from .sim_returns import Returns
from .sim_workers import Sequence as Answer
from .sim_workers import Service, Worker
from .sim_workload import TIERS, Offer, TierLoad

RULES: tuple[TierRule, ...] = tuple(tier.rule for tier in TIERS)
WINDOW_S = 5.0
"""Of the windows in which tenants are compared."""


@dataclass(slots=True)
class Outcome:
    """What became of a request."""

    offer: Offer
    tier: TierLoad
    job: Job
    """As the policy was told."""
    dispatched: float | None = None
    first: float | None = None
    """When the first token came."""
    ended: float | None = None
    """When it was refused, cut off or complete."""
    refused: TiermeshError | None = None
    complete: bool = False
    tokens: int = 0
    batch: float = 0.0

    @property
    def taken(self) -> bool:
        """Whether it was taken in when it came."""
        return self.refused is None or self.ended != self.offer.at

    @property
    def ran(self) -> bool:
        """Whether it was given a slot."""
        return self.dispatched is not None

    @property
    def first_in_time(self) -> bool:
        """Whether the first token came within the tier's budget."""
        return self.first is not None and self.first <= self.offer.at + self.tier.rule.ttft_s

    @property
    def attained(self) -> bool:
        """Whether it attained its tier."""
        return self.complete and self.first_in_time


@dataclass(slots=True)
class Window:
    """Some seconds of a run."""

    service: dict[str, float] = field(default_factory=dict)
    """Tokens read and twice those written, by tenant."""
    backlogged: set[str] = field(default_factory=set)
    """Tenants that had jobs waiting all the time."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers of a run, and the one that dies."""

    service: Service
    workers: int
    dead: tuple[float, float] | None = None
    """When the first dies and is back, in seconds."""


class Run:
    """A simulation; `run` once, then read."""

    def __init__(
        self,
        policy: Policy,
        offers: Sequence[Offer],
        pool: Pool,
        *,
        clairvoyant: bool = False,
        returns: Returns | None = None,
        tiers: Sequence[TierLoad] = TIERS,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.windows: list[Window] = []
        self.largest_lag = 0.0
        self.longest_wait = {tier.rule.name: 0.0 for tier in tiers}
        """Cost that others were given while a tier waited, at most."""
        self._policy = policy
        self._tiers = tiers
        self._offers: list[tuple[float, int, Offer]] = []
        """To come, a heap."""
        self._numbered = 0
        self._returns = returns
        self._pool = pool
        self._clairvoyant = clairvoyant
        self._estimates = Estimates()
        self._workers = [Worker(pool.service, str(number)) for number in range(pool.workers)]
        self._answers: dict[int, tuple[Answer, Worker]] = {}
        """That run, and where."""
        self._ends: list[tuple[float, int]] = []
        """Their deadlines."""
        self._waiting = dict.fromkeys(self.longest_wait, 0)
        self._waiting_of: dict[str, int] = {}
        self._passed_over = dict.fromkeys(self.longest_wait, 0.0)
        self._given: dict[str, float] = {}
        """Service of answers that have ended, by tenant."""
        self._before: dict[str, float] = {}
        self.now = 0.0
        self._come(*offers)

    def run(self) -> None:
        """From the first offer until nothing waits or runs."""
        policy, offers = self._policy, self._offers
        self._resize()
        tick = WINDOW_S
        changes = [] if self._pool.dead is None else [(self._pool.dead[0], self._die), (self._pool.dead[1], self._back)]
        while offers or self._answers or policy.wake_at is not None:
            times = [tick, *(worker.next_event for worker in self._workers), *(end for end, _ in self._ends[:1])]
            times += [offers[0][0]] if offers else []
            times += [wake_at] if (wake_at := policy.wake_at) is not None else []
            times += [changes[0][0]] if changes else []
            times += [self._returns.next_probe] if self._returns is not None else []
            self.now = now = min(times)
            for worker in self._workers:
                worker.advance(now)
            self._work(now)
            self._cut(now)
            if changes and changes[0][0] <= now:
                changes.pop(0)[1]()
            if tick <= now:
                self._close_window()
                tick += WINDOW_S
            if self._returns is not None:
                self._returns.probe(policy, now)
            while offers and offers[0][0] <= now:
                self._arrive(heapq.heappop(offers)[2])
            self._take(policy.decide(now))
        self._close_window()

    def _come(self, *offers: Offer) -> None:
        for offer in offers:
            self._numbered += 1
            heapq.heappush(self._offers, (offer.at, self._numbered, offer))

    def _arrive(self, offer: Offer) -> None:
        tier, estimates = self._tiers[offer.tier], self._estimates
        number = len(self.outcomes)
        output = float(offer.output)
        if not self._clairvoyant:
            output = estimates.output_tokens(offer.tenant, "", tier.max_tokens)
        cost = actual_cost(offer.prompt, output)
        batches = {worker.name: float(min(worker.held + 1, worker.service.slots)) for worker in self._workers}
        service_s = estimates.service_s(offer.prompt, output, batches)
        first_s = estimates.service_s(offer.prompt, 1.0, batches)
        deadline = offer.at + tier.deadline_s
        name = tier.rule.name
        slow_s = estimates.slow_s(offer.tenant, name, service_s)
        job = Job(number, offer.tenant, name, cost, deadline, service_s, first_s, offer.request, slow_s=slow_s)
        self.outcomes.append(outcome := Outcome(offer, tier, job))
        if self._returns is not None:
            self._returns.arrived(outcome)
        self._wait(offer, 1)
        self._take(self._policy.arrive(job, self.now))

    def _take(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            outcome = self.outcomes[decision.job]
            assert outcome.dispatched is None, "one outcome per request"
            assert outcome.ended is None, "one outcome per request"
            if isinstance(decision, Refusal):
                outcome.ended, outcome.refused = self.now, decision.error
                self._wait(outcome.offer, -1)
                if self._returns is not None:
                    self._come(*self._returns.refused(outcome, self.now))
            else:
                self._dispatch(decision, outcome)
        if isinstance(self._policy, Scheduler):
            self.largest_lag = max(self.largest_lag, *self._policy.lags.values())

    def _dispatch(self, decision: Dispatch, outcome: Outcome) -> None:
        offer, tier = outcome.offer, outcome.tier
        assert self.now < offer.at + tier.deadline_s, "nothing is dispatched after its deadline"
        for name, waiting in self._waiting.items():
            waited = waiting and name != tier.rule.name
            self._passed_over[name] = self._passed_over[name] + min(outcome.job.cost, LARGEST_COST) if waited else 0.0
            self.longest_wait[name] = max(self.longest_wait[name], self._passed_over[name])
        self._wait(offer, -1)
        outcome.dispatched = self.now
        worker = min(self._workers, key=lambda worker: worker.held)
        answer = Answer(decision.job, offer.prompt, offer.output, offer.tier, outcome.job.deadline)
        self._answers[decision.job] = (answer, worker)
        heapq.heappush(self._ends, (offer.at + tier.deadline_s, decision.job))
        worker.add(answer)
        outcome.batch = worker.held

    def _work(self, now: float) -> None:
        for worker in self._workers:
            while worker.next_event <= now:
                answer, complete = worker.pop()
                outcome = self.outcomes[answer.number]
                outcome.first = now if outcome.first is None else outcome.first
                if complete:
                    outcome.complete = True
                    outcome.batch = (outcome.batch + worker.held + 1) / 2
                    self._learn(outcome, worker.name)
                    self._end(answer.number)

    def _cut(self, now: float) -> None:
        """Ends what is past its deadline."""
        while self._ends and (self._ends[0][0] <= now or self._ends[0][1] not in self._answers):
            number = heapq.heappop(self._ends)[1]
            if number in self._answers:
                answer, worker = self._answers[number]
                worker.leave(answer)
                self._end(number)

    def _end(self, number: int) -> None:
        answer, _ = self._answers.pop(number)
        outcome = self.outcomes[number]
        outcome.ended, outcome.tokens = self.now, int(answer.delivered)
        cost = actual_cost(outcome.offer.prompt, outcome.tokens)
        tenant = outcome.offer.tenant
        self._given[tenant] = self._given.get(tenant, 0.0) + cost
        self._policy.finish(number, cost, self.now)

    def _learn(self, outcome: Outcome, worker: str) -> None:
        offer, job = outcome.offer, outcome.job
        assert outcome.first is not None
        assert outcome.dispatched is not None
        self._estimates.took(offer.tenant, job.tier, job.service_s, self.now - outcome.dispatched)
        self._estimates.finished(offer.tenant, "", outcome.tier.max_tokens, offer.output)
        tpot_s = (self.now - outcome.first) / (offer.output - 1) if offer.output > 1 else None
        ttft_s = outcome.first - outcome.dispatched
        self._estimates.workers.timed(worker, offer.prompt, ttft_s, outcome.batch, tpot_s)

    def _die(self) -> None:
        """All that the first worker held goes on at the others, which read again what they need."""
        for answer in self._workers.pop(0).die():
            other = min(self._workers, key=lambda worker: worker.held)
            other.add(answer)
            self._answers[answer.number] = (answer, other)
        self._resize()

    def _back(self) -> None:
        self._workers.append(Worker(self._pool.service, "0", self.now))
        self._resize()

    def _resize(self) -> None:
        slots, workers = self._pool.service.slots, len(self._workers)
        self._policy.slots = slots * workers
        if isinstance(self._policy, Scheduler):
            self._policy.room = room_of(slots) * workers

    def _wait(self, offer: Offer, step: int) -> None:
        tier = self._tiers[offer.tier].rule.name
        self._waiting[tier] += step
        if not self._waiting[tier]:
            self._passed_over[tier] = 0.0
        left = self._waiting_of[offer.tenant] = self._waiting_of.get(offer.tenant, 0) + step
        if not left and self.windows:
            self.windows[-1].backlogged.discard(offer.tenant)

    def _close_window(self) -> None:
        given = dict(self._given)
        for answer, worker in self._answers.values():
            offer = self.outcomes[answer.number].offer
            made = worker.made(answer)
            read = offer.prompt if made > 0 else 0
            given[offer.tenant] = given.get(offer.tenant, 0.0) + actual_cost(read, made)
        if self.windows:
            self.windows[-1].service = {name: total - self._before.get(name, 0.0) for name, total in given.items()}
        self._before = given
        self.windows.append(Window(backlogged={name for name, waiting in self._waiting_of.items() if waiting}))


def simulate(
    policy: Callable[[], Policy],
    offers: Sequence[Offer],
    pool: Pool,
    *,
    clairvoyant: bool = False,
    returns: Returns | None = None,
    tiers: Sequence[TierLoad] = TIERS,
) -> Run:
    """A run that has ended."""
    run = Run(policy(), offers, pool, clairvoyant=clairvoyant, returns=returns, tiers=tiers)
    run.run()
    return run

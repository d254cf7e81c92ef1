"""One tenant's requests in a row, through the node's own session, tab, ledger, alarm and audits; the truth beside them.

A stream begins with texts that the edge was calibrated for and changes at once. What an entry in the account promised
is noted when it is made, and held against the truth when the answer is over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from ..common.frames import Policy, TenantPolicy, TierPolicy
from ..common.types import Quality, Request, Sampling
from ..edge.answer import Answer
from ..edge.audits import Audits
from ..edge.calibration import Calibration
from ..edge.chooser import Course, Pace, RunningMean
from ..edge.drift import Standing
from ..edge.ledger import Account
from ..edge.ledgers import Ledgers
from ..edge.lull import Lull
from ..edge.metrics import EdgeMetrics
from ..edge.session import Session, Terms
from ..edge.tab import Tab
from ..edge.tenants import Tenants
from ..edge.trust import Decision, Trust
from ..edge.units import Unit
from ..edge.upstream import Upstream
from ..edge.visits import Errand, Visits
from .drifted import Text
from .recorded import Pair, RecordedCloud, RecordedDraft

_TENANT = "bench"
_DEADLINE_S = 1e6
_AUDIT_S = 600.0
"""For the audits of one answer, beyond which the run has failed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One stream."""

    before: Sequence[Text]
    after: Sequence[Text]
    delta: float
    labels_all: bool
    """Whether a visit labels each answer when it ends; else visits label what they read and audits the rest."""
    lies: bool
    """Whether the edge claims to be sure of everything after the change."""
    seed: int
    """Of the coins."""


class Note(NamedTuple):
    """An account after one entry."""

    units: int
    """Of the answer, decided so far."""
    shown: int
    """Tokens shown alone since the stream began."""
    counted: int
    """Of shown: wrong, as labels told the account."""
    bound: float
    """At most so many of shown are wrong, as far as the account knows."""
    allowance: float
    withheld: int
    standing: Standing


class Moment(NamedTuple):
    """A note, and what is true then."""

    note: Note
    units: int
    """Since the stream began."""
    wrong: int
    """Of the tokens shown: the cloud would have taken another one, whether a label says so or not."""


@dataclass(slots=True)
class Outcome:
    """What came of one stream; pairs are before and after the change."""

    moments: list[Moment] = field(default_factory=list)
    onset: int = 0
    """Moments before the change."""
    units: list[int] = field(default_factory=lambda: [0, 0])
    trusted: list[int] = field(default_factory=lambda: [0, 0])
    """Units that the score trusted…"""
    alone: list[int] = field(default_factory=lambda: [0, 0])
    """…and those that were shown alone."""
    audits: dict[str, float] = field(default_factory=dict)
    """By outcome."""


class _WatchedTab(Tab):
    """Notes which places were shown alone, in order, and each entry in the account."""

    def __init__(self, account: Account, cloud: str) -> None:
        super().__init__(account, cloud, self._note)
        self.places: list[int] = []
        self.course: Course | None = None
        self.notes: list[Note] = []

    def show(self, position: int, tokens: int) -> None:
        self.places += range(position, position + tokens)
        super().show(position, tokens)

    def _note(self, account: Account) -> None:
        units = self.course.units if self.course else 0
        counts = account.wrong + account.forfeited + account.unlabelled
        standing = account.watch.standing
        self.notes.append(
            Note(units, account.shown, account.wrong, counts, account.allowance, account.withheld, standing)
        )


class _Sure(Trust):
    """An edge that says to be sure of whatever it drafts."""

    def decide(self, unit: Unit, quality: Quality, delta: float) -> Decision:
        return Decision.ALONE


class _NoLull(Lull):
    """Audits are due at once: their labels come before the next answer."""

    async def wait(self, until: float) -> None:
        return


class Stream:
    """Runs one plan."""

    def __init__(self, pair: Pair, calibration: Calibration, plan: Plan) -> None:
        self._pair, self._calibration, self._plan = pair, calibration, plan
        artifact = pair.decoder.artifact
        self._upstream = Upstream("this process", "bench", artifact.digests, None, lambda _: None)
        self._upstream.link = RecordedCloud(pair)
        self._upstream.models = (pair.info,)
        self._metrics = EdgeMetrics()
        self._audits = Audits(self._upstream, _tenants(), self._metrics, _NoLull(), random.Random(plan.seed))
        self._ledgers = Ledgers(None, artifact.digests.model)
        self._outcome = Outcome()
        self._wrong = 0

    async def run(self) -> Outcome:
        """The whole stream."""
        auditing = asyncio.create_task(self._audits.run())
        try:
            for text in self._plan.before:
                await self._answer(text, drifted=False)
            self._outcome.onset = len(self._outcome.moments)
            for text in self._plan.after:
                await self._answer(text, drifted=True)
        finally:
            auditing.cancel()
            with suppress(asyncio.CancelledError):
                await auditing
        for outcome in ("labelled", "passed_over", "lost", "dropped"):
            count = self._metrics.registry.get_sample_value("tiermesh_edge_audits_total", {"outcome": outcome})
            self._outcome.audits[outcome] = count or 0.0
        return self._outcome

    async def _answer(self, text: Text, drifted: bool) -> None:
        prompt = tuple(self._pair.decoder.text.encode_prompt(text.prompt))
        request = Request(prompt, text.max_tokens, tier="standard", quality=Quality.BOUNDED, request_id="r")
        account = self._ledgers.tab(_TENANT, self._pair.info.digests.model, self._plan.delta).account
        assert account is not None
        tab, course = _WatchedTab(account, self._pair.info.digests.model), Course(_patient(), may_be_alone=True)
        tab.course = course
        answer = Answer(self._pair.decoder.text.detokenizer(()), self._pair.decoder.end_ids, text.max_tokens)

        async def open_draft() -> RecordedDraft:
            return RecordedDraft(self._pair, prompt)

        trust = _Sure if drifted and self._plan.lies else Trust
        deadline = asyncio.get_running_loop().time() + _DEADLINE_S
        session = Session(
            list(prompt),
            Terms(Quality.BOUNDED, self._plan.delta, may_degrade=False, deadline=deadline),
            answer,
            course,
            trust(lambda: self._calibration, Sampling()),
            tab,
            self._upstream,
            Visits(self._upstream.link, Errand(request, _TENANT, lambda: None)),
            open_draft,
            lambda _: None,
            handed_over=False,
        )
        await session.run()
        ids = (*answer.ids, *(() if answer.end_id is None else (answer.end_id,)))
        choices = await self._pair.choices(prompt, ids)
        if self._plan.labels_all:
            tab.label(0, ids, choices)
        self._audits.ended(tab, request, _TENANT, len(prompt), ids)
        async with asyncio.timeout(_AUDIT_S):
            while account.pending or account.unvisited.awaited:  # noqa: ASYNC110 - entries have no event
                await asyncio.sleep(0)
        self._settle(tab, session, [choices[place] != ids[place] for place in tab.places], drifted)

    def _settle(self, tab: _WatchedTab, session: Session, wrong: list[bool], drifted: bool) -> None:
        """Holds what was noted against the truth."""
        outcome, units = self._outcome, sum(self._outcome.units)
        shown_before = tab.account.shown - len(wrong) if tab.account else 0
        for note in tab.notes:
            outcome.moments.append(
                Moment(note, units + note.units, self._wrong + sum(wrong[: note.shown - shown_before]))
            )
        self._wrong += sum(wrong)
        assert tab.course is not None
        outcome.units[drifted] += tab.course.units
        outcome.alone[drifted] += session.decisions[Decision.ALONE]
        outcome.trusted[drifted] += session.decisions[Decision.ALONE] + sum(tab.withheld.values())


@cache
def _tenants() -> Tenants:
    """The policy of all streams: one tenant, one tier."""
    tenants, tier = Tenants(None), TierPolicy("standard", 1.0, _DEADLINE_S)
    tenants.replace(Policy((TenantPolicy(_TENANT, (), (tier.name,)),), (tier,), 1e6, b""))
    return tenants


def _patient() -> Pace:
    """A pace at which no answer is handed over: times mean nothing where most answers are remembered."""
    return Pace(stream_step_s=RunningMean(1e6), visits_to_probe=10**9)

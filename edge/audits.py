"""Audits: what no visit labelled, the cloud labels afterwards, in the background. No client waits for it.

A coin decides which answers (`Account.audit_probability`). One audit is one session: an ask whose ids given alone are
the answer, and whose draft is the last id, so that the verdict on it is the label of an id that ended the answer too.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..common.errors import InternalError, ModelNotFound, Overloaded, TiermeshError, Unavailable
from ..common.frames import Accepted, CloseReason, Open, SessionMode, UsageReport, Verdict
from ..common.relay_link import LinkSession
from ..common.telemetry import get_logger
from ..common.types import CacheControl, Request
from .ledger import Account
from .lull import Lull
from .metrics import EdgeMetrics
from .tab import Tab
from .tenants import Tenants
from .units import UNIT_TOKENS
from .upstream import Upstream

_log = get_logger()

IN_FLIGHT = 2
"""Audits at once: they use what the cloud has left."""

QUEUED = 64
"""Audits that wait; then the oldest is given up."""

PATIENCE_S = 1.0
"""How long an audit waits for a quiet moment. Sent at once, each met the visit of the client's next request at the
worker, and 34 ms of asking were 14 of auditing (one client, one answer after the other)."""

_SHORT = 2.0 * UNIT_TOKENS
"""Room of an account, in tokens, below which its audits wait no more: soon it could show nothing alone."""

_TRIES = 3
_PAUSE_S = (1.0, 30.0)
"""Between tries: when the cloud names no delay, and at most."""


@dataclass(frozen=True, slots=True)
class Case:
    """An answer, or the part of it up to its last unlabelled token."""

    request: Request
    tenant: str
    cloud: str
    """Digest of the cloud model that was meant."""
    prompt_tokens: int
    ids: tuple[int, ...]
    """Of the answer; an id that ended it is among them."""
    unlabelled: tuple[int, ...]
    """Answer indices; one or more."""
    probability: float
    """With which the coin picked it."""
    latest: float
    """When it is asked even if no moment is quiet; on the event loop's clock, in seconds."""
    account: Account
    changed: Callable[[], None]
    """To be called after an entry in the account."""


class Audits:
    """Throws the coins, and has the picked answers labelled."""

    def __init__(
        self, upstream: Upstream, tenants: Tenants, metrics: EdgeMetrics, lull: Lull, rng: random.Random
    ) -> None:
        """`rng` throws the coins: nobody else may know its seed."""
        self._upstream = upstream
        self._tenants = tenants
        self._metrics = metrics
        self._lull = lull
        self._rng = rng
        self._queue: asyncio.Queue[Case] = asyncio.Queue(QUEUED)

    def ended(self, tab: Tab, request: Request, tenant: str, prompt_tokens: int, ids: tuple[int, ...]) -> None:
        """An answer has ended, however it did: what it leaves unlabelled is audited, or left to chance."""
        unlabelled, account = tab.close(), tab.account
        if account is None or not unlabelled:
            return
        tokens = len(unlabelled)
        probability = account.audit_probability(tokens)
        picked = self._rng.random() < probability
        if probability < 1.0:
            account.leave(tokens, probability, picked)
        tab.touch()
        if not picked:
            self._metrics.audits.labels("passed_over").inc()
            return
        if self._queue.full():
            self._give_up(self._queue.get_nowait(), "dropped", "too many audits wait")
        short = account.room < _SHORT
        if short:
            self._lull.hurry()
        ids = ids[: unlabelled[-1] + 1]
        latest = asyncio.get_running_loop().time() + PATIENCE_S * (not short)
        self._queue.put_nowait(
            Case(request, tenant, tab.cloud, prompt_tokens, ids, unlabelled, probability, latest, account, tab.touch)
        )

    async def run(self) -> None:
        """Audits whenever the link is up, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            case = await self._queue.get()
            await self._lull.wait(case.latest)
            try:
                labels = await self._labelled(case)
            except TiermeshError as error:
                self._give_up(case, "lost", error.message)
            except TimeoutError:
                self._give_up(case, "lost", "its tier's deadline passed")
            except Exception:  # noqa: BLE001 - the top of a task; logged
                _log.exception("defect", task="audit", request_id=case.request.request_id)
                self._give_up(case, "lost", "an internal error")
            else:
                self._enter(case, labels)

    async def _labelled(self, case: Case) -> list[bool]:
        """For each unlabelled index, whether the cloud takes the same id. Raises what stands against it."""
        tries = _TRIES
        while True:
            while not await self._upstream.link.wait_connected(_PAUSE_S[1]):
                pass
            tries -= 1
            try:
                return await self._ask(case)
            except TiermeshError as error:
                again = isinstance(error, Unavailable | Overloaded) or error.retry_after_s is not None
                if not tries or not again:
                    raise
                # Overloaded without a delay: no place can be promised within the longest pause.
                pause_s = _PAUSE_S[1] if isinstance(error, Overloaded) else _PAUSE_S[0]
                await asyncio.sleep(min(error.retry_after_s or pause_s, _PAUSE_S[1]))

    async def _ask(self, case: Case) -> list[bool]:
        pool = self._upstream.pool(case.request.model)
        if pool is None or pool.digests.model != case.cloud:
            raise ModelNotFound("the cloud model that the answer was meant to agree with is served no more")
        tier = self._tenants.lowest_tier(case.tenant)
        request = replace(
            case.request,
            tier=tier.name,
            deadline_s=tier.deadline_s,
            request_id=secrets.token_hex(16),
            cache=CacheControl.BYPASS,
            logprobs=False,
            top_logprobs=0,
        )
        session = self._upstream.link.session()
        reason = CloseReason.CANCELLED
        try:
            async with asyncio.timeout(tier.deadline_s):
                session.open(
                    Open(0, 0, request, SessionMode.VERIFY, tenant=case.tenant, deadline_left_s=tier.deadline_s)
                )
                session.ask(0, case.ids[-1:], case.ids[:-1])
                verdict = await _verdict(session)
            reason = CloseReason.DONE
        finally:
            session.close(reason)
        if len(verdict.choices) != len(case.ids) - 1 or verdict.position != len(case.ids) - 1:
            raise InternalError("the cloud's verdict does not belong to the audit")
        agrees = [mine == theirs for mine, theirs in zip(case.ids, verdict.choices, strict=False)]
        agrees.append(verdict.stands == 1)
        return [agrees[index] for index in case.unlabelled]

    def _enter(self, case: Case, labels: list[bool]) -> None:
        wrong, tokens = labels.count(False), len(labels)
        case.account.audited(tokens, case.probability, wrong)
        case.changed()
        metrics, read = self._metrics, case.prompt_tokens + len(case.ids)
        metrics.audits.labels("labelled").inc()
        metrics.audit_tokens.inc(read)
        metrics.labels.labels("true").inc(tokens - wrong)
        metrics.labels.labels("false").inc(wrong)
        self._report(case, UsageReport("", "", "", labelled_tokens=tokens, wrong_tokens=wrong, audit_tokens=read))

    def _give_up(self, case: Case, outcome: str, cause: str) -> None:
        case.account.audit_lost(len(case.unlabelled), case.probability)
        case.changed()
        self._metrics.audits.labels(outcome).inc()
        _log.warning("unaudited", outcome=outcome, tenant=case.tenant, request_id=case.request.request_id, cause=cause)
        self._report(case, UsageReport("", "", "", audits_lost=1))

    def _report(self, case: Case, told: UsageReport) -> None:
        """Beside the report of the answer itself, which went long ago."""
        request = case.request
        self._upstream.report(
            replace(told, request_id=request.request_id, tenant=case.tenant, tier=request.tier, audits=1)
        )


async def _verdict(session: LinkSession) -> Verdict:
    while isinstance(frame := await session.receive(), Accepted):
        pass
    if not isinstance(frame, Verdict):
        raise InternalError("the cloud answered an audit with something else than a verdict")
    return frame

"""One answer, unit by unit: the edge model drafts, and each unit is shown alone, asked about, or handed over.

    draft ──▶ trusted? ──yes──▶ show it alone ──▶ draft …
                 │no
                 ▼
    ask: what stands is shown, then the cloud's own next id; the draft goes on from there
                 │ when visits cost more per token than the cloud's own stream
                 ▼
    hand over: the cloud finishes the answer

What was drafted and does not stand is rolled back by the next draft, which starts from the ids of the answer. A visit
that finds the cloud gone ends as the tenant allows: the unit is shown as degraded, or the answer waits for the stream
to come back and resumes with all its ids.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from ..common.errors import DeadlineExceeded, InternalError, LeaseExpired, TiermeshError, Unavailable
from ..common.frames import CloseReason, RelayFinished, RelayTokens, Verdict
from ..common.types import Finished, FinishReason, Origin, Quality, Timing, Tokens, TopLogprobs, Usage
from .answer import Answer
from .chooser import Course, prefers_streaming, worthwhile_drafts
from .drafting import Doubt, Draft
from .tab import Tab
from .trust import Decision, Trust
from .units import Unit
from .upstream import Upstream
from .visits import Visits

RESUME_WAIT_S = 30.0
"""How long a begun answer waits for a broken stream, if its deadline allows as much."""

_LAST_WORD_S = 0.2
"""How long a complete answer waits for the cloud's usage and timings."""

_RESUMES = 5
"""Broken streams that one answer survives."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed for one answer."""

    quality: Quality
    delta: float
    """Bound on the share of units shown alone that differ."""
    may_degrade: bool
    """Whether a unit may be shown that should have been asked about, when the cloud can't be reached."""
    deadline: float
    """On the event loop's clock, in seconds."""
    logprobs: bool = False
    top_logprobs: bool = False
    foreign: bool = False
    """The pool has another tokenizer: no ids go up, text comes down as it is."""


class Session:
    """Runs one answer. `emit` is called for whatever may be shown."""

    def __init__(
        self,
        prompt_ids: list[int],
        terms: Terms,
        answer: Answer,
        course: Course,
        trust: Trust,
        tab: Tab,
        upstream: Upstream,
        visits: Visits,
        open_draft: Callable[[], Awaitable[Draft]],
        emit: Callable[[Tokens], None],
        handed_over: bool,
    ) -> None:
        """`handed_over` starts with the cloud: the edge drafts nothing."""
        self.answer = answer
        self.decisions: Counter[Decision] = Counter()
        self.tab = tab
        self._prompt_ids = prompt_ids
        self._terms = terms
        self._course = course
        self._trust = trust
        self._upstream = upstream
        self._visits = visits
        self._open_draft = open_draft
        self._emit = emit
        self._handed_over = handed_over
        self._draft: Draft | None = None
        self._resumes = 0
        self._asks = 0
        self._withheld = False
        """Whether the present unit was trusted, and is asked about because the ledger says so."""
        self._stream: tuple[float, float, int] | None = None
        """Times of the first and the last streamed tokens, and how many came after the first."""
        self._spent = dict.fromkeys(("prefill", "decode", "decision", "relay", "verify"), 0.0)
        self._told: RelayFinished | None = None

    async def run(self) -> Finished:
        """The whole answer. Raises TiermeshError; when cancelled, nothing goes on for it anywhere."""
        closing = CloseReason.CANCELLED
        if self._handed_over:
            self.decisions[Decision.HAND_OVER] += 1
        try:
            async with asyncio.timeout_at(self._terms.deadline):
                while self.answer.reason is None:
                    if self._handed_over:
                        await self._follow()
                    else:
                        await self._advance()
                await self._hear_out()
            closing = CloseReason.DONE
            self._note_stream()
        except TimeoutError as exc:
            closing = CloseReason.DEADLINE
            raise DeadlineExceeded("the deadline passed before the answer was complete; allow more time") from exc
        finally:
            self._release_draft()
            self._visits.close(closing)
        assert self.answer.reason is not None
        return self.finished(self.answer.reason)

    async def _advance(self) -> None:
        """One unit."""
        unit = await self._next_unit()
        decision = self._decide(unit)
        self.decisions[decision] += 1
        if decision is Decision.ALONE:
            before = len(self.answer.ids)
            self._show_alone(unit, degraded=False)
            if self._terms.quality is Quality.BOUNDED:
                self.tab.show(before, len(self.answer.ids) - before + (self.answer.end_id is not None))
            return
        try:
            await self._visit(unit, decision is Decision.HAND_OVER)
        except Unavailable as lost:
            # Who says that a lease ended can be reached: the unit is asked about again.
            if self._terms.may_degrade and not isinstance(lost, LeaseExpired):
                self.decisions[decision] -= 1
                self.decisions[Decision.ALONE] += 1
                self._show_alone(unit, degraded=True)
            else:
                await self._await_stream(lost)

    async def _next_unit(self) -> Unit:
        if self._draft is None:
            self._draft = await self._open_draft()
        draft = self._draft
        before_s, before = draft.decode_s, draft.tokens
        room = self.answer.room
        doubt = None
        if self._terms.quality is Quality.EXACT:
            room = min(room, worthwhile_drafts(self._course))
            self._visits.foresee(self.answer)
        elif self._terms.quality is Quality.BOUNDED:
            enough = worthwhile_drafts(self._course)
            doubt = Doubt(self._in_doubt, lambda: self._visits.foresee(self.answer), enough)
        unit = await draft.unit(self._prompt_ids + self.answer.ids, room, doubt)
        self._course.pace.edge_step_s.add((draft.decode_s - before_s) / (draft.tokens - before or 1))
        return unit

    def _in_doubt(self, begun: Unit) -> bool:
        return self._trust.decide(begun, self._terms.quality, self._terms.delta) is Decision.ASK

    def _decide(self, unit: Unit) -> Decision:
        begun = time.perf_counter()
        decision = self._trust.decide(unit, self._terms.quality, self._terms.delta)
        bounded = decision is Decision.ALONE and self._terms.quality is Quality.BOUNDED
        self._withheld = bounded and self.tab.refuses(len(unit.ids))
        if self._withheld:
            decision = Decision.ASK
        self._course.decided(unit.probabilities, alone=decision is Decision.ALONE)
        if decision is Decision.ASK:
            probes = self._course.pace.probe_due()
            if probes or prefers_streaming(self._course, self._upstream.cloud_step_s):
                decision = Decision.HAND_OVER
        self._spent["decision"] += time.perf_counter() - begun
        return decision

    def _show_alone(self, unit: Unit, degraded: bool) -> None:
        self._take(unit.ids, Origin.EDGE, unit.logprobs, unit.top_logprobs, degraded)

    async def _visit(self, unit: Unit, hand_over: bool) -> None:
        """Asks; shows what stands and the cloud's own next id."""
        if not self._upstream.connected:
            raise self._upstream.why_down()
        asked = time.perf_counter()
        try:
            verdict = await self._visits.ask(self.answer, unit.ids, hand_over)
        finally:
            took_s = time.perf_counter() - asked
            self._spent["relay"] += took_s
        self._asks += 1
        if isinstance(verdict, RelayFinished):
            self._end(verdict)
            return
        self._learn(unit, verdict, took_s)
        before = len(self.answer.ids)
        stands, follows = unit.ids[: verdict.stands], () if verdict.next_id is None else (verdict.next_id,)
        self._take(stands, Origin.EDGE, verdict.logprobs, verdict.top_logprobs)
        after = slice(verdict.stands, None)
        self._take(follows, Origin.CLOUD, verdict.logprobs[after], verdict.top_logprobs[after])
        if hand_over:
            self._handed_over = True
            self._release_draft()
        elif self.answer.reason is None and len(self.answer.ids) == before:
            raise InternalError("the cloud's verdict neither accepts a draft nor names its own id")

    def _learn(self, unit: Unit, verdict: Verdict, took_s: float) -> None:
        pace = self._course.pace
        pace.travelled(max(0.0, took_s - verdict.compute_s), self._visits.prefilled)
        if not self._visits.prefilled:
            pace.verify_s.add(verdict.compute_s)
        self._spent["verify"] += verdict.compute_s
        self._course.visited(len(unit.ids), verdict.stands)
        known = max(0, verdict.position - len(verdict.choices))
        self.tab.label(known, self.answer.ids[known:], verdict.choices)
        if self._withheld:
            self.tab.verified(len(unit.ids), verdict.stands)

    async def _follow(self) -> None:
        """One step of a handed-over answer."""
        begun = time.perf_counter()
        try:
            if self._visits.lost:
                if not self._upstream.connected:
                    raise self._upstream.why_down()
                self._visits.generate(self.answer)
            frame = await self._visits.more()
        except Unavailable as lost:
            if self._terms.may_degrade and not self._terms.foreign:
                self._handed_over = False
            else:
                await self._await_stream(lost)
            return
        finally:
            self._spent["relay"] += time.perf_counter() - begun
        if isinstance(frame, RelayFinished):
            self._end(frame)
        elif self._terms.foreign:
            self._show(self.answer.pass_on(frame.ids, frame.text, frame.origin, frame.logprobs, frame.top_logprobs))
        else:
            self._clock_stream(frame)
            self._take(frame.ids, frame.origin, frame.logprobs, frame.top_logprobs)

    async def _hear_out(self) -> None:
        """After the last streamed token the cloud says what it all took: most often in the very same message."""
        if self._handed_over and self._stream and self._told is None:
            with suppress(TimeoutError, TiermeshError):
                async with asyncio.timeout(_LAST_WORD_S):
                    while not isinstance(frame := await self._visits.more(), RelayFinished):
                        pass
                self._told = frame

    async def _await_stream(self, lost: Unavailable) -> None:
        """Returns when a begun answer can be resumed; raises `lost` when waiting makes no sense or is in vain."""
        # A subclass (no workers, draining) is the router's own word; and an answer not begun can be asked for again.
        if type(lost) not in (Unavailable, LeaseExpired) or not self._visits.begun or self._resumes >= _RESUMES:
            raise lost
        self._resumes += 1
        left_s = self._terms.deadline - asyncio.get_running_loop().time()
        if not await self._upstream.link.wait_connected(min(RESUME_WAIT_S, left_s)):
            raise lost

    def _clock_stream(self, frame: RelayTokens) -> None:
        now = time.perf_counter()
        first, _, count = self._stream or (now, now, -len(frame.ids))
        self._stream = first, now, count + len(frame.ids)

    def _note_stream(self) -> None:
        if self._stream and self._stream[2] >= 4:
            first, last, count = self._stream
            self._course.pace.streamed((last - first) / count)

    def _end(self, told: RelayFinished) -> None:
        self._told = told
        self._show(self.answer.end(told.reason, Origin.CLOUD))

    def _take(
        self,
        ids: tuple[int, ...],
        origin: Origin,
        logprobs: tuple[float, ...],
        top: tuple[TopLogprobs, ...],
        degraded: bool = False,
    ) -> None:
        """Makes ids part of the answer and shows them, with what the request wants beside them."""
        terms = self._terms
        wanted, wanted_top = logprobs if terms.logprobs else (), top if terms.top_logprobs else ()
        self._show(self.answer.take(ids, origin, wanted, degraded, wanted_top))

    def _show(self, tokens: Tokens | None) -> None:
        if tokens is not None:
            self._emit(tokens)

    def _release_draft(self) -> None:
        if self._draft is not None:
            self._spent["prefill"] += self._draft.prefill_s
            self._spent["decode"] += self._draft.decode_s
            self._draft.close()
            self._draft = None

    def finished(self, reason: FinishReason) -> Finished:
        """The closing event, with what the answer took."""
        spent = self._spent
        timings = [Timing("edge", stage, spent[stage]) for stage in ("prefill", "decode", "decision", "relay")]
        if spent["verify"]:
            timings.append(Timing("cloud", "verify", spent["verify"]))
        if self._told is not None:
            timings += self._told.timings
        told = self._told.usage if self._told else Usage()
        prompt = len(self._prompt_ids) or told.prompt_tokens
        completion = len(self.answer.ids)
        usage = Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_prompt_tokens=told.cached_prompt_tokens,
            billed_tokens=0 if told.cached else prompt + completion,
            asks=self._asks,
            alone=self.decisions[Decision.ALONE],
            handed_over=self.decisions[Decision.HAND_OVER] > 0,
            cached=told.cached,
        )
        return Finished(reason, usage, tuple(timings))

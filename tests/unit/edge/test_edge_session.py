"""The loop of one answer against a cloud that is a deterministic function, whatever the edge drafts."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.detokenize import Detokenizer
from tiermesh.common.errors import (
    DeadlineExceeded,
    LeaseExpired,
    NoWorkers,
    Overloaded,
    TiermeshError,
    Unavailable,
)
from tiermesh.common.frames import (
    Accepted,
    Ask,
    Close,
    CloseReason,
    Open,
    RelayFinished,
    RelayTokens,
    SessionError,
    SessionMode,
    UpFrame,
    UsageReport,
    Verdict,
    Welcome,
)
from tiermesh.common.relay_link import RelayLink
from tiermesh.common.types import (
    Digests,
    Finished,
    FinishReason,
    ModelInfo,
    Origin,
    Quality,
    Request,
    Sampling,
    Tokens,
    Usage,
)
from tiermesh.edge.answer import Answer
from tiermesh.edge.calibration import CLASSES, Calibration, ClassCalibration, ScoreMap
from tiermesh.edge.chooser import Course, Pace
from tiermesh.edge.drafting import Doubt
from tiermesh.edge.features import FEATURES
from tiermesh.edge.ledger import Account, Cause
from tiermesh.edge.risk import Step
from tiermesh.edge.session import Session, Terms
from tiermesh.edge.tab import Tab
from tiermesh.edge.trust import Decision, Trust
from tiermesh.edge.units import Borders, Unit
from tiermesh.edge.upstream import Upstream
from tiermesh.edge.visits import Errand, Visits

EOS = 1
MAP = ScoreMap(0.0, (1.0, *(0.0,) * (len(FEATURES) - 1)))
"""The score is the product of a unit's probabilities…"""
GREEDY = ClassCalibration(CLASSES[0], MAP, (Step(0.5, 1.0, 1000, 0),), 500, 1000, 0.0, 0.0)
CALIBRATION = Calibration(Digests(), "", 0.05, 1500, "", 40, (GREEDY,))
"""…and from 0.5 on it was never wrong."""
BYTES = [b"", b"", b"\n", b"a", b"b", b"ab", b" ", "é".encode()[:1], "é".encode()[1:], b"ba\n", b"x", b"yz"]
BORDERS = Borders(frozenset({2, 9}), frozenset({EOS}))
PROMPT = [3, 4, 5]


def next_id(salt: int, ids: Sequence[int]) -> int:
    """The cloud's own choice after these ids: about one answer in ten tokens ends."""
    digest = hashlib.sha256(f"{salt}:{list(ids)}".encode()).digest()
    return EOS if digest[0] < 26 else 2 + digest[1] % (len(BYTES) - 2)


@dataclass
class Ending:
    """How an answer ends, as the cloud sees it: its own copy of the rules."""

    max_tokens: int
    stop: tuple[str, ...]

    def cut(self, ids: Sequence[int]) -> tuple[list[int], str, FinishReason | None]:
        detokenizer, kept = Detokenizer(BYTES, self.stop), []
        text = ""
        for token in ids:
            if token == EOS:
                return kept, text + detokenizer.finish(), FinishReason.STOP
            text += detokenizer.push([token])
            kept.append(token)
            if detokenizer.stopped:
                return kept, text + detokenizer.finish(), FinishReason.STOP
            if len(kept) == self.max_tokens:
                return kept, text + detokenizer.finish(), FinishReason.LENGTH
        return kept, text, None

    def whole(self, salt: int) -> tuple[list[int], str, FinishReason]:
        ids: list[int] = []
        while True:
            ids.append(next_id(salt, ids))
            kept, text, reason = self.cut(ids)
            if reason is not None:
                return kept, text, reason


class CloudLink(RelayLink):
    """A link whose other end is a deterministic function in this process."""

    def __init__(self, salt: int, ending: Ending) -> None:
        super().__init__("cloud", None)  # type: ignore[arg-type]
        self.salt, self.ending = salt, ending
        self.opens: list[Open] = []
        self.asks: list[Ask] = []
        self.closes: list[Close] = []
        self.reports: list[UsageReport] = []
        self.refuse: TiermeshError | None = None
        self.break_at: set[int] = set()
        """Upward frames (by number) that break the stream instead of arriving."""
        self.forget_at: set[int] = set()
        """Asks (by number) that find their session's lease at its end."""
        self.heal = True
        self.silent = False
        self._sent = 0
        self._ids: dict[int, list[int]] = {}
        self.connect()

    def connect(self) -> None:
        self.welcome = Welcome("cloud", (ModelInfo("m", Digests(), 1000, len(BYTES)),))
        self._connected.set()

    def _send(self, frame: UpFrame) -> None:
        if not self.connected:
            raise Unavailable("the cloud is gone")
        self._sent += 1
        if self._sent in self.break_at:
            asyncio.get_running_loop().call_soon(self._break)
        else:
            asyncio.get_running_loop().call_soon(self._arrive, frame)

    def _break(self) -> None:
        self._down()
        if self.heal:
            asyncio.get_running_loop().call_soon(self.connect)

    def _arrive(self, frame: UpFrame) -> None:
        if isinstance(frame, UsageReport):
            self.reports.append(frame)
        elif isinstance(frame, Close):
            self.closes.append(frame)
        elif not self.connected or self.silent:
            return
        elif isinstance(frame, Open):
            self.opens.append(frame)
            self._ids[frame.session] = list(frame.delivered_ids)
            if self.refuse is not None:
                del self._ids[frame.session]
                self._take(SessionError(frame.session, frame.attempt, self.refuse))
                return
            self._take(Accepted(frame.session, frame.attempt))
            if frame.mode is SessionMode.GENERATE:
                self._generate(frame.session, frame.attempt)
        elif isinstance(frame, Ask) and frame.session in self._ids:
            self.asks.append(frame)
            if len(self.asks) in self.forget_at:
                del self._ids[frame.session]
                self._take(SessionError(frame.session, frame.attempt, LeaseExpired("no ask came")))
            else:
                self._verify(frame)

    def _verify(self, ask: Ask) -> None:
        ids = self._ids[ask.session]
        assert ask.position == len(ids), "an ask must follow what the cloud has"
        choices = []
        for shown in ask.alone_ids:
            choices.append(next_id(self.salt, ids))
            ids.append(shown)
        base, stands = len(ids), 0
        for drafted in ask.draft_ids:
            if next_id(self.salt, ids) != drafted:
                break
            ids.append(drafted)
            stands += 1
        follows = None if stands and ids[-1] == EOS else next_id(self.salt, ids)
        if follows is not None:
            ids.append(follows)
        self._take(Verdict(ask.session, ask.attempt, base, stands, follows, tuple(choices), compute_s=0.001))
        if ask.hand_over:
            self._generate(ask.session, ask.attempt)

    def _generate(self, session: int, attempt: int) -> None:
        """Two tokens a frame, as fast as the link takes them; the second frame may break the stream, too."""
        ids = self._ids[session]
        while (reason := self.ending.cut(ids)[2]) is None:
            new: list[int] = []
            position = len(ids)
            while len(new) < 2 and self.ending.cut(ids)[2] is None:
                ids.append(next_id(self.salt, ids))
                if ids[-1] != EOS:
                    new.append(ids[-1])
            if new:
                self._take(RelayTokens(session, attempt, position, tuple(new), ""))
            self._sent += 1
            if self._sent in self.break_at:
                self._break()
                return
        self._take(RelayFinished(session, attempt, reason, Usage(prompt_tokens=3)))


@dataclass
class ScriptedDraft:
    """Drafts what the cloud would say with probability `skill`, else anything; with made-up confidence."""

    salt: int
    skill: float
    confidence: float
    rng: random.Random
    prefill_s: float = 0.001
    decode_s: float = 0.0
    tokens: int = 0
    closed: int = 0
    delay: asyncio.Event | None = None
    known: list[list[int]] = field(default_factory=list)

    async def unit(self, known: Sequence[int], room: int, doubt: Doubt | None = None) -> Unit:
        if doubt and self.confidence < 1.0:
            doubt.tell()
        if self.delay is not None:
            await self.delay.wait()
        assert room >= 1
        assert list(known[: len(PROMPT)]) == PROMPT
        answer = list(known[len(PROMPT) :])
        self.known.append(answer)
        ids: list[int] = []
        while not ids or (len(ids) < room and not BORDERS.closes(ids)):
            right = next_id(self.salt, answer + ids)
            ids.append(right if self.rng.random() < self.skill else self.rng.randrange(1, len(BYTES)))
        self.tokens += len(ids)
        self.decode_s += 1e-4 * len(ids)
        each = tuple(1.0 if self.rng.random() < self.confidence else 0.1 for _ in ids)
        return Unit(tuple(ids), each, each, (0.5,) * len(ids), ids[-1] == EOS, (-0.5,) * len(ids))

    def close(self) -> None:
        self.closed += 1


@dataclass
class Bench:
    """One session with its surroundings."""

    link: CloudLink
    draft: ScriptedDraft
    session: Session
    shown: list[Tokens]

    @property
    def text(self) -> str:
        return "".join(tokens.text for tokens in self.shown)

    @property
    def ids(self) -> list[int]:
        return [i for tokens in self.shown for i in tokens.ids]


def bench(
    salt: int = 0,
    *,
    quality: Quality = Quality.EXACT,
    skill: float = 0.7,
    confidence: float = 0.9,
    max_tokens: int = 40,
    stop: tuple[str, ...] = (),
    may_degrade: bool = False,
    handed_over: bool = False,
    deadline_s: float = 20.0,
    pace: Pace | None = None,
    seed: int = 0,
    account: Account | None = None,
) -> Bench:
    link = CloudLink(salt, Ending(max_tokens, stop))
    upstream = Upstream("cloud", "edge", Digests(), None, lambda _: None)
    upstream.link = link
    draft = ScriptedDraft(salt, skill, confidence, random.Random(seed))
    shown: list[Tokens] = []
    request = Request(tuple(PROMPT), max_tokens, stop=stop, request_id="r")
    errand = Errand(request, "demo", lambda: deadline_s)

    async def open_draft() -> ScriptedDraft:
        return draft

    session = Session(
        PROMPT,
        Terms(quality, 0.05, may_degrade, asyncio.get_running_loop().time() + deadline_s),
        Answer(Detokenizer(BYTES, stop), {EOS}, max_tokens),
        Course(pace or Pace(), may_be_alone=quality is Quality.BOUNDED),
        Trust(lambda: CALIBRATION, Sampling()),
        Tab(account or Account(0.05, allowance=1000.0)),
        upstream,
        Visits(link, errand),
        open_draft,
        shown.append,
        handed_over,
    )
    return Bench(link, draft, session, shown)


def impatient() -> Pace:
    """A pace at which streaming beats any visit."""
    pace = Pace()
    for mean, value in ((pace.edge_step_s, 1e-3), (pace.travel_s, 1.0), (pace.stream_step_s, 1e-6)):
        mean.add(value)
    return pace


async def finish(parts: Bench) -> Finished:
    finished = await parts.session.run()
    await asyncio.sleep(0)
    return finished


STOPS = st.lists(st.sampled_from(["ab", "ba\n", "aab", "é", "x\n", "bab", "zz"]), max_size=2, unique=True).map(tuple)


@given(
    salt=st.integers(0, 10_000),
    skill=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    max_tokens=st.integers(1, 60),
    stop=STOPS,
    streams=st.booleans(),
    whole=st.booleans(),
    breaks=st.sets(st.integers(1, 12), max_size=3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_exact_text_is_the_clouds_own(salt, skill, max_tokens, stop, streams, whole, breaks, seed) -> None:
    async def body() -> None:
        parts = bench(
            salt,
            skill=skill,
            max_tokens=max_tokens,
            stop=stop,
            pace=impatient() if streams else None,
            handed_over=whole,
            seed=seed,
        )
        parts.link.break_at = breaks
        ids, text, reason = parts.link.ending.whole(salt)
        finished = await finish(parts)
        assert (parts.ids, parts.text, finished.reason) == (ids, text, reason)
        assert parts.draft.closed <= 1
        assert [close.reason for close in parts.link.closes] == [CloseReason.DONE] or breaks
        assert finished.usage.completion_tokens == len(ids)
        assert sum(parts.session.answer.by_origin.values()) == len(ids)
        assert finished.usage.alone == 0

    asyncio.run(body())


@given(
    salt=st.integers(0, 10_000),
    skill=st.sampled_from([0.3, 0.9, 1.0]),
    confidence=st.sampled_from([0.5, 0.95, 1.0]),
    max_tokens=st.integers(1, 60),
    stop=STOPS,
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_bounded_answers_end_where_they_should(salt, skill, confidence, max_tokens, stop, seed) -> None:
    """Whoever gave the ids: the text is that of the ids, cut by the rules; verified tokens follow what was shown."""

    async def body() -> None:
        parts = bench(
            salt,
            quality=Quality.BOUNDED,
            skill=skill,
            confidence=confidence,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
        )
        finished = await finish(parts)
        closing = [] if finished.reason is FinishReason.LENGTH else [EOS]
        ids, text, reason = parts.link.ending.cut(parts.ids + closing)
        assert (parts.ids, parts.text, finished.reason) == (ids, text, reason)
        shown: list[int] = []
        for tokens in parts.shown:
            for token in tokens.ids:
                if tokens.origin is Origin.CLOUD:
                    assert token == next_id(salt, shown)
                shown.append(token)
        decisions = parts.session.decisions
        assert finished.usage.alone == decisions[Decision.ALONE]
        assert finished.usage.asks == len(parts.link.asks) == decisions[Decision.ASK] + decisions[Decision.HAND_OVER]
        assert not any(tokens.degraded for tokens in parts.shown)
        tab, account = parts.session.tab, parts.session.tab.account
        assert account is not None
        alone = [i for i, token in enumerate(origins(parts)) if token is Origin.EDGE]
        left = tab.close()
        assert set(left) <= {*alone, len(parts.ids)}
        assert tab.shown == account.shown == tab.labelled + len(left)
        assert account.pending == len(left)
        wrong = sum(next_id(salt, parts.ids[:i]) != parts.ids[i] for i in alone if i not in left)
        assert (account.wrong, account.right) == (wrong, tab.labelled - wrong)

    asyncio.run(body())


def origins(parts: Bench) -> list[Origin]:
    return [tokens.origin for tokens in parts.shown for _ in tokens.ids]


async def long_answer(**terms: object) -> Bench:
    """A bench whose cloud has at least 24 tokens to say."""
    salt = next(s for s in range(1000) if len(Ending(40, ()).whole(s)[0]) >= 24)
    return bench(salt, **terms)  # type: ignore[arg-type]


async def test_edge_quality_never_leaves() -> None:
    parts = await long_answer(quality=Quality.EDGE, confidence=0.0)
    parts.link._down()
    finished = await finish(parts)
    assert finished.usage.alone > 1
    assert not parts.link.opens
    assert {tokens.origin for tokens in parts.shown} == {Origin.EDGE}


async def test_alone_ids_travel_with_the_next_ask_and_come_back_labelled() -> None:
    parts = await long_answer(quality=Quality.BOUNDED, skill=0.8, confidence=0.93, seed=3)
    await finish(parts)
    asked = [ask for ask in parts.link.asks if ask.alone_ids]
    assert asked, "the seed must give an ask after a unit shown alone"
    assert parts.session.tab.labelled == sum(len(ask.alone_ids) for ask in parts.link.asks)
    assert parts.session.tab.wrong < parts.session.tab.labelled


async def test_a_ledger_without_room_asks_and_learns_from_it() -> None:
    account = Account(0.05, allowance=0.0)
    parts = await long_answer(quality=Quality.BOUNDED, skill=0.9, confidence=1.0, account=account)
    await finish(parts)
    ids, text, _ = parts.link.ending.whole(parts.link.salt)
    assert (parts.ids, parts.text) == (ids, text), "every unit was verified"
    assert parts.session.tab.withheld[Cause.LEDGER] == len(parts.link.asks) > 1
    assert account.withheld > 0
    assert account.shown == account.pending == 0


async def test_degraded_units_are_no_matter_of_the_ledger() -> None:
    account = Account(0.05, allowance=0.0)
    parts = await long_answer(quality=Quality.BOUNDED, confidence=1.0, may_degrade=True, account=account)
    parts.link._down()
    await finish(parts)
    assert parts.shown
    assert all(tokens.degraded for tokens in parts.shown)
    assert account.shown == parts.session.tab.shown == 0


async def test_hand_over_streams_the_rest_and_gives_the_kv_cache_back() -> None:
    parts = await long_answer(skill=1.0, pace=impatient())
    finished = await finish(parts)
    assert [ask.hand_over for ask in parts.link.asks] == [True]
    assert finished.usage.handed_over
    assert len(parts.draft.known) == 1
    assert parts.draft.closed == 1
    assert parts.session.answer.by_origin[Origin.CLOUD] > 0


async def test_the_first_visit_measures_before_anything_is_handed_over() -> None:
    parts = await long_answer(skill=0.0)
    parts.link.load = None
    await finish(parts)
    assert [ask.hand_over for ask in parts.link.asks][:2] == [False, False]


@pytest.mark.parametrize("quality", [Quality.EXACT, Quality.BOUNDED])
async def test_a_cloud_that_was_never_there_is_refused_at_once(quality: Quality) -> None:
    parts = await long_answer(quality=quality, confidence=0.0)
    parts.link._down()
    with pytest.raises(Unavailable) as refusal:
        await asyncio.wait_for(parts.session.run(), 1)
    assert refusal.value.retry_after_s
    assert parts.draft.closed == 1


async def test_degraded_answers_say_so() -> None:
    parts = await long_answer(quality=Quality.BOUNDED, confidence=0.8, may_degrade=True)
    parts.link._down()
    finished = await finish(parts)
    assert finished.reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert any(tokens.degraded for tokens in parts.shown)
    assert parts.session.answer.degraded
    assert finished.usage.alone == sum(parts.session.decisions.values())


async def test_losing_the_cloud_in_a_hand_over_goes_on_degraded() -> None:
    parts = await long_answer(quality=Quality.BOUNDED, confidence=0.0, may_degrade=True, pace=impatient())
    parts.link.break_at, parts.link.heal = {5}, False
    finished = await finish(parts)
    assert parts.session.answer.by_origin[Origin.CLOUD] > 1
    assert parts.shown[-1].degraded
    assert finished.usage.completion_tokens == len(parts.ids)


async def test_no_workers_comes_up_as_it_is() -> None:
    parts = await long_answer()
    parts.link.refuse = NoWorkers("no worker is ready", retry_after_s=2.0)
    with pytest.raises(NoWorkers) as refusal:
        await parts.session.run()
    assert refusal.value.retry_after_s == 2.0
    assert len(parts.link.opens) == 1


@pytest.mark.parametrize(("quality", "confidence"), [(Quality.EXACT, 1.0), (Quality.BOUNDED, 0.0)])
async def test_the_cloud_hears_of_an_ask_while_it_is_drafted(quality: Quality, confidence: float) -> None:
    parts = await long_answer(quality=quality, confidence=confidence)
    parts.draft.delay = asyncio.Event()
    async with running(parts) as task:
        await until(lambda: len(parts.link.opens) == 1)
        assert not parts.link.asks
        parts.draft.delay.set()
        await task
    assert len(parts.link.opens) == 1


async def test_who_will_not_ask_opens_nothing() -> None:
    parts = await long_answer(quality=Quality.BOUNDED, confidence=1.0)
    await finish(parts)
    assert not parts.link.opens


@pytest.mark.parametrize("broken", [True, False])
async def test_a_session_lost_before_its_first_ask_is_opened_anew(broken: bool) -> None:
    parts = await long_answer(quality=Quality.BOUNDED, confidence=0.0)
    parts.draft.delay = asyncio.Event()
    parts.link.refuse = None if broken else Overloaded("full", retry_after_s=1.0)
    async with running(parts) as task:
        await until(lambda: len(parts.link.opens) == 1)
        await asyncio.sleep(0)
        if broken:
            parts.link._break()
        parts.link.refuse = None
        await until(lambda: parts.link.connected)
        parts.draft.delay.set()
        await task
    assert [opening.attempt for opening in parts.link.opens] == [1, 2]
    assert not parts.session.answer.degraded


async def test_a_stream_that_does_not_heal_ends_in_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiermesh.edge.session.RESUME_WAIT_S", 0.05)
    parts = await long_answer()
    parts.link.break_at, parts.link.heal = {4}, False
    with pytest.raises(Unavailable):
        await parts.session.run()


async def test_resuming_names_all_delivered_ids_and_a_higher_attempt() -> None:
    parts = await long_answer(skill=0.9)
    parts.link.break_at = {4}
    await finish(parts)
    first, second = parts.link.opens
    assert (first.attempt, first.delivered_ids) == (1, ())
    assert second.attempt == 2
    assert list(second.delivered_ids) == parts.ids[: len(second.delivered_ids)] != []
    assert second.delivered_bytes == len("".join(parts.text).encode()[: second.delivered_bytes])


@pytest.mark.parametrize("may_degrade", [True, False])
async def test_a_lease_that_ends_under_an_ask_is_no_outage(may_degrade: bool) -> None:
    """The cloud can be reached: the unit is asked about again in a session opened anew, and shown once."""
    parts = await long_answer(quality=Quality.BOUNDED, skill=0.5, confidence=0.0, may_degrade=may_degrade)
    parts.link.forget_at = {1, 3}
    await finish(parts)
    ids, text, _ = parts.link.ending.whole(parts.link.salt)
    assert (parts.ids, parts.text) == (ids, text)
    assert not parts.session.answer.degraded
    assert [opening.attempt for opening in parts.link.opens] == [1, 2, 3]


@asynccontextmanager
async def running(parts: Bench) -> AsyncIterator[asyncio.Task[Finished]]:
    task = asyncio.create_task(parts.session.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


@pytest.mark.parametrize("where", ["draft", "ask"])
async def test_the_deadline_ends_it_wherever_it_is(where: str) -> None:
    parts = await long_answer(deadline_s=0.05)
    if where == "draft":
        parts.draft.delay = asyncio.Event()
    else:
        parts.link.silent = True
    with pytest.raises(DeadlineExceeded):
        await parts.session.run()
    assert parts.draft.closed == 1
    await until(lambda: [close.reason for close in parts.link.closes] == [CloseReason.DEADLINE])


async def test_cancelling_closes_upstream_and_gives_the_kv_cache_back() -> None:
    parts = await long_answer()
    parts.link.silent = True
    async with running(parts) as task:
        await until(lambda: parts.link._sent == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
    assert parts.draft.closed == 1
    await until(lambda: [close.reason for close in parts.link.closes] == [CloseReason.CANCELLED])


async def test_unverified_tokens_are_not_shown_while_an_ask_is_in_flight() -> None:
    parts = await long_answer()
    parts.link.silent = True
    async with running(parts):
        await until(lambda: parts.link._sent == 2)
        assert parts.shown == []


async def test_timings_name_every_stage() -> None:
    parts = await long_answer()
    finished = await finish(parts)
    stages = {(timing.hop, timing.stage): timing.duration_s for timing in finished.timings}
    assert set(stages) == {("edge", s) for s in ("prefill", "decode", "decision", "relay")} | {("cloud", "verify")}
    assert all(value > 0 for value in stages.values())


async def test_a_verdict_that_does_not_belong_ends_the_answer() -> None:
    parts = await long_answer()
    take = parts.link._take
    parts.link._take = lambda f: take(replace(f, stands=99) if isinstance(f, Verdict) else f)  # type: ignore[method-assign]
    with pytest.raises(TiermeshError, match="verdict"):
        await parts.session.run()


async def test_a_doubt_that_comes_after_the_end_opens_nothing() -> None:
    """The model's thread may raise one while the answer is being cancelled; nobody would close that session."""
    parts = await long_answer(quality=Quality.BOUNDED, confidence=1.0)
    await finish(parts)
    parts.session._visits.foresee(parts.session.answer)
    await asyncio.sleep(0)
    assert not parts.link.opens

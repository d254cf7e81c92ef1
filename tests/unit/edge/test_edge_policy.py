"""Chooser, admission, tenants and intake: what decides, without a model or a network."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from tiermesh.common.frames import Policy, TenantPolicy, TierPolicy
from tiermesh.common.keys import key_hash, salted_hash
from tiermesh.common.types import Digests, ModelInfo, Quality, Request
from tiermesh.edge.admission import Admission
from tiermesh.edge.artifact import Architecture
from tiermesh.edge.chooser import (
    Course,
    Pace,
    asking_s_per_token,
    expected_tokens,
    prefers_streaming,
    worthwhile_drafts,
)
from tiermesh.edge.intake import Situation, fill, goes_up_whole, limits
from tiermesh.edge.tenants import Grant, Tenants
from tiermesh.edge.units import Borders, line_ends


@given(acceptance=st.floats(0, 1), drafted=st.integers(1, 16))
def test_a_visit_yields_between_one_token_and_all(acceptance: float, drafted: int) -> None:
    assert 1 <= expected_tokens(acceptance, drafted) <= drafted + 1 + 1e-9
    by_hand = sum(acceptance**i for i in range(drafted + 1))
    assert expected_tokens(acceptance, drafted) == pytest.approx(by_hand)


@given(
    edge=st.floats(1e-5, 0.1),
    visit=st.floats(1e-4, 1),
    acceptance=st.floats(0, 1),
    alone=st.floats(0, 1),
    drafted=st.integers(1, 16),
)
def test_slower_visits_never_make_asking_cheaper(
    edge: float, visit: float, acceptance: float, alone: float, drafted: int
) -> None:
    cost = asking_s_per_token(edge, visit, acceptance, alone, 16, drafted)
    assert asking_s_per_token(edge, 2 * visit, acceptance, alone, 16, drafted) >= cost
    assert asking_s_per_token(edge, visit, min(1.0, acceptance + 0.1), alone, 16, drafted) <= cost + 1e-12


def measured(edge_s: float, travel_s: float, verify_s: float, stream_s: float) -> Pace:
    pace = Pace()
    for mean, value in zip(
        (pace.edge_step_s, pace.travel_s, pace.verify_s, pace.stream_step_s),
        (edge_s, travel_s, verify_s, stream_s),
        strict=True,
    ):
        mean.add(value)
    return pace


def test_hand_over_follows_rtt_and_acceptance() -> None:
    near, far = measured(0.5e-3, 1e-3, 5e-3, 3e-3), measured(0.5e-3, 100e-3, 5e-3, 5e-3)
    assert not prefers_streaming(Course(near, may_be_alone=False), None)
    assert prefers_streaming(Course(far, may_be_alone=False), None)
    unlucky = Course(near, may_be_alone=False)
    for _ in range(8):
        unlucky.visited(drafted=16, stands=0)
    assert prefers_streaming(unlucky, None)
    trusted = Course(far, may_be_alone=True, units=50, alone_units=50)
    assert not prefers_streaming(trusted, None)


def test_the_clouds_word_counts_until_a_stream_was_measured() -> None:
    pace = measured(1e-3, 50e-3, 5e-3, 5e-3)
    pace.stream_step_s.value = None
    course = Course(pace, may_be_alone=False)
    assert prefers_streaming(course, 1e-3)
    assert not prefers_streaming(course, 1.0)
    assert prefers_streaming(course, None), "a step is no longer than a verification: 5 ms"
    pace.verify_s.value = None
    assert not prefers_streaming(course, None), "nothing is known"


@given(acceptance=st.floats(0, 1), visit=st.floats(1e-3, 0.5), edge=st.floats(1e-4, 5e-3))
def test_drafts_are_as_many_as_pay(acceptance: float, visit: float, edge: float) -> None:
    pace = measured(edge, visit / 2, visit / 2, 5e-3)
    pace.acceptance.value = acceptance
    course = Course(pace, may_be_alone=False)
    best = worthwhile_drafts(course)
    costs = [asking_s_per_token(edge, visit, course.acceptance, 0.0, 16, n) for n in range(1, 17)]
    assert costs[best - 1] <= min(costs) * (1 + 1e-9)
    assert worthwhile_drafts(Course(Pace(), may_be_alone=False)) == 16


def test_poor_acceptance_shortens_drafts_and_far_clouds_lengthen_them() -> None:
    def drafts(acceptance: float, travel_s: float) -> int:
        pace = measured(1e-3, travel_s, 5e-3, 5e-3)
        pace.acceptance.value = acceptance
        return worthwhile_drafts(Course(pace, may_be_alone=False))

    assert drafts(0.3, 1e-3) < drafts(0.7, 1e-3) < drafts(0.95, 1e-3) <= 16
    assert drafts(0.7, 1e-3) < drafts(0.7, 0.1)


def test_borders() -> None:
    borders = Borders(line_ends([b"a", b"b\n", b"\n"]), frozenset({7}))
    assert borders.line_ends == {1, 2}
    assert borders.closes([0, 1])
    assert borders.closes([7])
    assert borders.closes([0] * 16)
    assert not borders.closes([0] * 15)


class Clock:
    """A clock that stands still."""

    time_s = 0.0

    def now(self) -> float:
        return self.time_s


def test_a_stream_is_probed_early_and_then_rarely() -> None:
    pace = Pace()
    visits = []
    for visit in range(600):
        if pace.probe_due():
            visits.append(visit)
            pace.streamed(0.01)
        Course(pace, may_be_alone=False).visited(8, 8)
    assert visits == [3, 9, 21, 45, 93, 189, 381]


def test_first_visits_do_not_make_the_link_look_slow() -> None:
    """Each answer that is handed over ends with its first visit: what that takes must be no reason for the next one."""
    pace = Pace()
    pace.travelled(0.5, first=True)
    assert pace.travel_s.value is None, "it says how long the cloud read, too"
    pace.travelled(0.01, first=False)
    pace.travelled(0.5, first=True)
    assert pace.travel_s.value == 0.01
    pace.travelled(0.005, first=True)
    assert pace.travel_s.value is not None
    assert pace.travel_s.value < 0.01, "no visit takes longer than a first one: the link has become faster"


def test_a_probe_that_measured_nothing_is_made_again_soon() -> None:
    pace = Pace()
    probes = 0
    for _ in range(30):
        probes += pace.probe_due()
        Course(pace, may_be_alone=False).visited(8, 8)
    assert probes == 9


async def test_admission_bounds_running_and_waiting() -> None:
    clock = Clock()
    admission = Admission(2, clock, queued_per_place=1)
    first, second = await admission.enter(), await admission.enter()
    waiters = [asyncio.create_task(admission.enter()) for _ in range(2)]
    await asyncio.sleep(0)
    assert (admission.running, admission.waiting, admission.full()) == (2, 2, True)
    with pytest.raises(Overloaded) as refusal:
        await admission.enter()
    assert refusal.value.retry_after_s
    clock.time_s = 3.0
    admission.leave(first)
    assert admission.wait_s() == pytest.approx((1 + 1) * 3.0 / 2)
    waiters[1].cancel()
    admission.leave(second)
    entered = await waiters[0]
    await asyncio.gather(*waiters, return_exceptions=True)
    admission.leave(entered)
    assert (admission.running, admission.waiting, admission.wait_s()) == (0, 0, 0.0)


@given(st.lists(st.sampled_from(["enter", "leave", "cancel", "turn"]), max_size=60))
@settings(max_examples=100, deadline=None)
def test_admission_never_loses_a_place(moves: list[str]) -> None:
    async def body() -> None:
        admission, tasks = Admission(2, Clock(), queued_per_place=3), []
        for move in moves:
            done = [t for t in tasks if t.done() and not t.cancelled() and t.exception() is None]
            if move == "enter":
                tasks.append(asyncio.create_task(admission.enter()))
            elif move == "leave" and done:
                tasks.remove(done[0])
                admission.leave(done[0].result())
            elif move == "cancel" and (waiting := [t for t in tasks if not t.done()]):
                waiting[-1].cancel()
            elif move == "turn":
                await asyncio.sleep(0)
        while tasks:
            await asyncio.wait(tasks[:1], timeout=0)
            task = tasks.pop(0)
            if not task.done():
                tasks.append(task)
            elif not task.cancelled() and task.exception() is None:
                admission.leave(task.result())
        await asyncio.sleep(0)
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(body())


TIERS = (TierPolicy("fast", 0.05, 5.0), TierPolicy("slow", 1.0, 60.0), TierPolicy("other", 1.0, 60.0))
SALT = bytes(range(16))
DEMO = TenantPolicy("demo", (salted_hash(SALT, key_hash("demo-key")),), ("slow", "fast"))
POLICY = Policy((DEMO,), TIERS, valid_s=100.0, salt=SALT)
YEAR_S = 365 * 86400.0


def test_keys_are_checked_against_the_policy(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path)
    with pytest.raises(Unavailable, match="router"):
        tenants.authenticate("demo-key")
    tenants.replace(POLICY)
    assert tenants.authenticate("demo-key") == DEMO
    for wrong in ("", "demo-ke", "Demo-key"):
        with pytest.raises(Unauthenticated):
            tenants.authenticate(wrong)
    tenants.replace(replace(POLICY, tenants=()))
    with pytest.raises(Unauthenticated):
        tenants.authenticate("demo-key")
    with pytest.raises(Unauthenticated):
        tenants.by_name("demo")


def test_the_policy_survives_a_restart_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dir = tmp_path / "state"
    Tenants(state_dir).replace(POLICY)
    assert stat.S_IMODE((state_dir / "policy.json").stat().st_mode) == 0o600
    kept = (state_dir / "policy.json").read_text()
    assert "demo-key" not in kept
    assert key_hash("demo-key").removeprefix("sha256:") not in kept
    restarted = Tenants(state_dir)
    restarted.restore()
    assert restarted.authenticate("demo-key") == DEMO
    later = json.loads((state_dir / "policy.json").read_text())["expires_at"] + 1
    monkeypatch.setattr("tiermesh.edge.tenants.time.time", lambda: later)
    restarted = Tenants(state_dir)
    restarted.restore()
    with pytest.raises(Unavailable, match="expired"):
        restarted.authenticate("demo-key")


@pytest.mark.parametrize("jump_s", [-50 * YEAR_S, -3600.0, 3600.0, 50 * YEAR_S])
def test_a_policy_is_valid_for_its_time_whatever_the_wall_clock_says(
    tmp_path: Path, jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set forward it does not end early, set back it does not last longer; nor over a restart."""
    clock = Clock()
    tenants = Tenants(tmp_path, clock)
    tenants.replace(POLICY)
    jumped = time.time() + jump_s
    monkeypatch.setattr("tiermesh.edge.tenants.time.time", lambda: jumped)
    clock.time_s = POLICY.valid_s - 1
    assert tenants.authenticate("demo-key") == DEMO
    restarted = Tenants(tmp_path, clock)
    restarted.restore()
    if jump_s < 0:
        assert restarted.authenticate("demo-key") == DEMO
    clock.time_s += POLICY.valid_s + 1
    for each in (tenants, restarted):
        with pytest.raises(Unavailable, match="expired"):
            each.authenticate("demo-key")


BROKEN = {
    "of before": {"format": None},
    "of later": {"format": 3},
    "salt": {"policy": {"salt": "no hex"}},
    "no salt": {"policy": {"salt": None}},
    "tenants": {"policy": {"tenants": [{}]}},
    "expiry": {"expires_at": "soon"},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_state_file_of_another_form_is_ignored(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Tenants(tmp_path).replace(POLICY)
    facts, wrong = json.loads((tmp_path / "policy.json").read_text()), BROKEN[fault]
    policy = facts["policy"] | wrong.get("policy", {})
    ignored(tmp_path, json.dumps(facts | wrong | {"policy": policy}), capsys)


@pytest.mark.parametrize("content", ["", "[]", "{}", "\x00"])
def test_a_broken_state_file_is_ignored(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    ignored(tmp_path, content, capsys)


def ignored(folder: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "policy.json").write_text(content)
    tenants = Tenants(folder)
    capsys.readouterr()
    tenants.restore()
    assert "policy_unreadable" in "".join(capsys.readouterr())
    with pytest.raises(Unavailable):
        tenants.authenticate("demo-key")


@pytest.fixture
def tenants() -> Tenants:
    tenants = Tenants(None)
    tenants.replace(POLICY)
    return tenants


@given(asked=st.sampled_from([None, *Quality]), own=st.sampled_from(list(Quality)), delta=st.none() | st.floats(0, 1))
def test_a_request_tightens_and_never_loosens(asked: Quality | None, own: Quality, delta: float | None) -> None:
    tenants, tenant = Tenants(None), replace(DEMO, quality=own)
    tenants.replace(POLICY)
    grant = tenants.grant(Request("x", 1, quality=asked, delta=delta, deadline_s=1e9), tenant)
    assert grant.quality.looseness <= own.looseness
    assert grant.quality in (asked, own)
    assert grant.delta <= tenant.delta
    assert grant.deadline_s == 60.0


def test_tiers(tenants: Tenants) -> None:
    assert tenants.grant(Request("x", 1), DEMO).tier.name == "slow"
    assert tenants.grant(Request("x", 1, tier="fast"), DEMO).deadline_s == 5.0
    with pytest.raises(InvalidRequest, match="there are fast, slow, other"):
        tenants.grant(Request("x", 1, tier="none"), DEMO)
    with pytest.raises(Forbidden, match="it has slow, fast"):
        tenants.grant(Request("x", 1, tier="other"), DEMO)


SHAPES = Architecture(1, 8, 2, 1, 4, 300, 100, 1e4)
POOL = ModelInfo("m", Digests(), 400, 310)
NEAR = Situation(SHAPES, POOL, connected=True, same_ids=True, wait_s=0.0)


def grant_of(quality: Quality) -> Grant:
    return Grant(DEMO, TIERS[0], quality, 0.05, 5.0)


@pytest.mark.parametrize(
    ("situation", "quality", "tokens", "expected"),
    [
        (NEAR, Quality.BOUNDED, 50, False),
        (NEAR, Quality.BOUNDED, 101, True),
        (replace(NEAR, wait_s=1.0), Quality.BOUNDED, 50, True),
        (replace(NEAR, wait_s=1.0, connected=False), Quality.BOUNDED, 50, False),
        (replace(NEAR, wait_s=1.0), Quality.EDGE, 50, False),
        (replace(NEAR, same_ids=False), Quality.EXACT, 50, True),
        (replace(NEAR, same_ids=False), Quality.EDGE, 50, False),
        (replace(NEAR, pool=None, connected=False, same_ids=False), Quality.BOUNDED, 50, False),
    ],
)
def test_where_an_answer_begins(situation: Situation, quality: Quality, tokens: int, expected: bool) -> None:
    assert goes_up_whole(situation, grant_of(quality), tokens) is expected


def test_limits_follow_who_may_answer() -> None:
    assert (limits(NEAR, Quality.EDGE).max_context, limits(NEAR, Quality.EDGE).vocab_size) == (100, 300)
    assert (limits(NEAR, Quality.EXACT).max_context, limits(NEAR, Quality.EXACT).vocab_size) == (400, 300)
    assert limits(replace(NEAR, same_ids=False), Quality.EXACT).vocab_size == 310
    assert limits(replace(NEAR, pool=None), Quality.EXACT).max_context == 100


def test_the_first_hop_fills_in_what_is_open() -> None:
    filled = fill(Request("x", 1), grant_of(Quality.EXACT))
    again = fill(Request("x", 1), grant_of(Quality.EXACT))
    assert filled.sampling.seed is not None
    assert filled.sampling.seed != again.sampling.seed
    assert filled.request_id != again.request_id
    assert (filled.tier, filled.quality, filled.delta) == ("fast", Quality.EXACT, 0.05)
    assert fill(Request("x", 1, request_id="mine"), grant_of(Quality.EXACT)).request_id == "mine"
    with pytest.raises(DeadlineExceeded):
        fill(Request("x", 1), replace(grant_of(Quality.EXACT), deadline_s=0.0))

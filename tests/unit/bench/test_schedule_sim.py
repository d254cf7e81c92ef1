"""The simulated schedule: workers keep time, runs account for every request, and policies can be told apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.bench import schedule_cost, schedule_onset, schedule_returns
from tiermesh.bench.schedule_sim import OURS, draw, ours, policies, run_all, show, summary
from tiermesh.bench.sim_claims import claims, return_claims
from tiermesh.bench.sim_figures import WARM_UP_S, bounds, figures
from tiermesh.bench.sim_returns import Returns
from tiermesh.bench.sim_run import Pool, simulate
from tiermesh.bench.sim_workers import Sequence, Service, Worker
from tiermesh.bench.sim_workload import BURSTY, ON_OFF, SCENARIOS, STEADY, TIERS, Scenario, mean_work, offers
from tiermesh.cloud.preemption import EARNED

SERVICE = Service()


def test_a_lone_answer_takes_its_prefill_and_its_steps() -> None:
    worker = Worker(SERVICE, "w")
    worker.add(Sequence(0, 100, 11))
    worker.advance(worker.next_event)
    assert worker.now == pytest.approx(SERVICE.read_s(100))
    assert worker.pop()[1] is False
    worker.advance(worker.next_event)
    assert worker.now == pytest.approx(SERVICE.read_s(100) + 10 * SERVICE.tpot_s(1))
    assert worker.pop()[1] is True
    assert worker.held == 0
    assert worker.next_event == math.inf


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 999), st.integers(1, 50), st.integers(0, 2)), min_size=1, max_size=40),
    st.integers(0, 60),
)
def test_every_answer_gets_its_tokens_and_no_faster_than_the_fullest_batch(
    work: list[tuple[int, int, int]], stop_after: int
) -> None:
    worker, spare = Worker(SERVICE, "w"), Worker(SERVICE, "spare")
    answers = [Sequence(number, *lengths_and_tier) for number, lengths_and_tier in enumerate(work)]
    for answer in answers:
        worker.add(answer)
    done, events = set(), 0
    while (at := min(worker.next_event, spare.next_event)) < math.inf:
        worker.advance(at)
        spare.advance(at)
        for place in (worker, spare):
            assert len(place.decoding) + (place.reading is not None) <= SERVICE.slots
            while place.next_event <= at:
                answer, complete = place.pop()
                if complete:
                    assert answer.number not in done
                    assert answer.delivered == answer.output
                    done.add(answer.number)
        events += 1
        if events == stop_after:
            for answer in worker.die():
                spare.add(answer)
    assert done == set(range(len(work)))
    assert at == math.inf
    assert spare.now >= sum(SERVICE.least_work_s(prompt, output) for prompt, output, _ in work) / 2 - 1e-9


def run_until_read(worker: Worker, number: int) -> None:
    while number not in worker.decoding:
        worker.advance(worker.next_event)
        worker.pop()


def test_a_higher_tier_takes_the_place_of_a_short_one_of_a_lower_twice_at_most() -> None:
    """The victim is of the lowest tier and has the least to compute again; what it computed stays, but for a block."""
    worker = Worker(replace(SERVICE, slots=2), "w")
    for number, (prompt, tier) in enumerate([(500, 2), (100, 1)]):
        worker.add(Sequence(number, prompt, 500, tier))
        run_until_read(worker, number)
    for number in (2, 3):
        worker.add(Sequence(number, 10, 2, 0))
        assert [waiting.number for waiting in worker.queue] == [0]
        assert worker.queue[0].unread <= 16
        run_until_read(worker, number)
        run_until_read(worker, 0)
    worker.add(Sequence(4, 10, 2, 0))
    assert [waiting.number for waiting in worker.queue] == [1], "the other has given way twice"
    run_until_read(worker, 4)
    run_until_read(worker, 1)
    worker.add(Sequence(5, 10, 2, 2))
    assert worker.reading is None, "nobody gives way to its own tier"


def test_a_long_answer_gives_way_once_more_for_what_it_has_made_where_kv_is_not_short() -> None:
    for kv_tokens, gives_way in ((SERVICE.kv_tokens, True), (50, False)):
        worker = Worker(replace(SERVICE, slots=1, kv_tokens=kv_tokens), "w")
        worker.add(victim := Sequence(0, 10, 500, 2, preemptions=2))
        run_until_read(worker, 0)
        for answer, leaves in ((EARNED // 2, False), (EARNED + 1, gives_way)):
            worker.advance(worker.now + (answer - worker.made(victim)) * SERVICE.tpot_s(1))
            worker.add(Sequence(answer, 10, 2, 0))
            assert (victim in worker.queue) is leaves
            worker.leave(worker.queue[0] if victim not in worker.queue else worker.reading)


def test_a_higher_tier_is_read_before_the_rest_of_a_lower_one() -> None:
    worker = Worker(SERVICE, "w")
    worker.add(Sequence(0, 8000, 1, 2))
    worker.advance(0.1)
    for number in (1, 2):
        worker.add(Sequence(number, 100, 1, 0))
    for end_s in (0.1 + SERVICE.read_s(100), 0.1 + 2 * SERVICE.read_s(100)):
        worker.advance(worker.next_event)
        assert worker.pop()[1]
        assert worker.now == pytest.approx(end_s)
    worker.advance(worker.next_event)
    assert worker.pop()[0].number == 0
    # What was read stays, but for a block at most; beginning anew is paid again.
    most_s = SERVICE.prefill_s + 16 * SERVICE.prefill_token_s
    assert SERVICE.prefill_s <= worker.now - SERVICE.read_s(8000) - 2 * SERVICE.read_s(100) <= most_s + 1e-9


def test_where_kv_is_short_a_victim_is_read_again() -> None:
    worker = Worker(replace(SERVICE, slots=1, kv_tokens=500), "w")
    worker.add(Sequence(0, 500, 500, 2))
    run_until_read(worker, 0)
    worker.add(Sequence(1, 10, 2, 0))
    assert worker.queue[0].unread == 501


@pytest.mark.parametrize("phases", [STEADY, BURSTY, ON_OFF])
def test_the_offered_work_is_the_load(phases: object) -> None:
    scenario = Scenario("x", phases)  # type: ignore[arg-type]
    asked = offers(scenario, 1.0, SERVICE, 4, 3000.0, seed=3)
    assert [offer.at for offer in asked] == sorted(offer.at for offer in asked)
    work = sum(SERVICE.least_work_s(offer.prompt, offer.output) for offer in asked)
    assert work / 3000.0 / 4 == pytest.approx(1.0, abs=0.08)
    for index, tier in enumerate(TIERS):
        rate = 4 * tier.work / mean_work(tier, SERVICE)
        assert sum(offer.tier == index for offer in asked) / 3000.0 == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_policy_accounts_for_every_request(scenario: Scenario) -> None:
    horizon_s = 15.0
    asked = offers(scenario, 2.0, SERVICE, 2, horizon_s, seed=1)
    for name, policy in policies().items():
        run = simulate(policy, asked, Pool(SERVICE, 2, (5.0, 9.0) if scenario.dead else None))
        assert [outcome.offer for outcome in run.outcomes] == asked, name
        for outcome in run.outcomes:
            assert outcome.ended is not None
            assert outcome.ended <= outcome.offer.at + TIERS[outcome.offer.tier].deadline_s + 1e-9
            assert (
                outcome.tokens == outcome.offer.output if outcome.complete else outcome.tokens <= outcome.offer.output
            )
            assert outcome.complete <= (outcome.first is not None) <= (outcome.dispatched is not None)


def test_a_short_run_keeps_the_bounds_and_beats_a_single_queue(tmp_path: Path) -> None:
    """Two times overloaded for half a minute: enough to tell a schedule with tiers from one without."""
    told = run_all(SCENARIOS[0], 2.0, WARM_UP_S + 30.0, 0)
    limits = bounds()
    assert told[OURS]["largest_lag"] <= limits["largest_lag"]
    for tier, waited in told[OURS]["longest_wait"].items():
        assert waited <= limits["longest_wait"][tier]
    assert told[OURS]["tiers"]["realtime"]["attained"] > 0.95
    assert told["fcfs"]["tiers"]["realtime"]["attained"] < 0.5
    for name in policies():
        assert told[name]["goodput_per_s"] <= told["fluid_bound_per_s"]
    rows = [{"scenario": "poisson", "load": 2.0} | summary([told]) | {"runs": [told]}]
    show(rows)
    draw(rows, tmp_path)
    assert (tmp_path / "schedule_sim_poisson.png").stat().st_size > 10_000
    assert {claim.what.partition(" ")[0]: claim.met for claim in claims(rows)}["goodput"]


def test_a_claim_is_about_the_worst_row() -> None:
    row = {"scenario": "poisson", "load": 2.0, "attained": {"realtime": 0.995}, "batch_share": 0.06}
    row |= {"to_best_other": 1.2, "jain": None, "lag_to_bound": 0.3, "wait_to_bound": 0.8}
    bad = row | {"scenario": "flood", "load": 0.7, "attained": {"realtime": 0.98}, "jain": 0.96}
    realtime, share, anywhere, overloaded, jain, lag, wait = claims([row, bad])
    assert (realtime.value, realtime.met, realtime.facts["missed_in"]) == (0.98, False, ["flood at 0.7"])
    assert (share.met, anywhere.met, jain.value) == (True, True, 0.96)
    assert overloaded.facts["by_row"] == {"poisson at 2": 1.2}
    assert lag.met
    assert wait.met


def test_clients_that_come_back_are_followed(tmp_path: Path) -> None:
    """Each told delay of a run is kept apart, with what came of it; with nobody coming back nothing does."""
    horizon_s = WARM_UP_S + 30.0
    asked = offers(SCENARIOS[0], 2.0, SERVICE, 4, horizon_s, seed=1)
    returns = Returns(seed=1)
    run = simulate(ours, asked, Pool(SERVICE, 4), returns=returns)
    told = [one for one in returns.told if one.delay_s is not None]
    back = [outcome for outcome in run.outcomes if outcome.offer.again]
    assert len(back) == len(told) > 100
    assert {id(one.back) for one in told} == {id(outcome) for outcome in back}
    for one in told:
        assert one.back is not None
        assert one.delay_s is not None
        assert one.at + one.delay_s <= one.back.offer.at <= one.at + 1.1 * one.delay_s + 0.02
        if (shortest_s := one.shortest_worked_s) is not None and one.taken:
            assert shortest_s <= one.back.offer.at - one.at
    nobody = Returns(seed=1, share=0.0)
    run = simulate(ours, asked, Pool(SERVICE, 4), returns=nobody)
    assert len(run.outcomes) == len(asked)
    row = schedule_returns.run(SCENARIOS[0], 2.0, horizon_s, [1], 1.0)
    assert row["all"]["taken"] > 0.8
    rows = [{"scenario": "poisson", "load": 2.0} | row]
    schedule_returns.show(rows)
    schedule_returns.draw(rows, "returns", tmp_path)
    assert (tmp_path / "returns.png").stat().st_size > 10_000
    taken, delay = return_claims(rows)
    assert taken.met
    assert delay.value >= 1.0, "a told delay that worked is no shorter than the shortest that did"


def test_an_overload_that_begins_at_once_is_told_of_from_its_onset(tmp_path: Path) -> None:
    schedule_onset.main(
        ["--seconds", "15", "--seeds", "2", "--loads", "2", "--out", str(tmp_path), "--force"],
    )
    told = json.loads((tmp_path / "schedule_onset.json").read_text())["figures"]
    (row,) = told["rows"]
    asked = [schedule_onset.offers(2.0, 15.0, seed) for seed in range(2)]
    assert row["offered"] == sum(offer.at >= schedule_onset.BEGINS_S for offers in asked for offer in offers)
    assert row["offered"] == pytest.approx(2 * 2 * 15 * told["capacity_per_s"], rel=0.2)
    assert 0.4 < row["admitted"] / row["offered"] < 0.8
    assert row["lost"] < 0.02 * row["admitted"]
    assert row["attained"]["realtime"] > 0.95
    assert row["attained"]["batch"] < row["attained_in_the_end"]["batch"] < 0.8, "some come back, and most do not"
    assert sum(row["useful_share"].values()) == pytest.approx(1.0)
    assert [claim["what"].partition(" ")[0] for claim in told["claims"]] == ["requests", "realtime", "of", "told"]


def test_below_capacity_next_to_all_attain_their_tier() -> None:
    horizon_s = WARM_UP_S + 20.0
    asked = offers(SCENARIOS[0], 0.5, SERVICE, 4, horizon_s, seed=2)
    told = figures(simulate(ours, asked, Pool(SERVICE, 4)), horizon_s)
    assert min(tier["attained"] for tier in told["tiers"].values()) > 0.97
    assert told["wasted_tokens"] < 0.02


def test_the_cost_of_a_step_is_told(tmp_path: Path) -> None:
    schedule_cost.main(
        ["--waiting", "20", "--tenants", "3", "--steps", "50", "--rounds", "1", "--out", str(tmp_path), "--force"]
    )
    told = json.loads((tmp_path / "schedule_cost.json").read_text())["figures"]
    assert told["step_us"]["3"] > 0

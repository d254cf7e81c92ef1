"""Who runs next, who gives way, and how a step is shared. The fuzzer over all of it is in `test_engine_fuzz.py`."""

from __future__ import annotations

import math
from typing import Any

from tiermesh.cloud.blocks import BlockPool
from tiermesh.cloud.pace import Pace
from tiermesh.cloud.preemption import EARNED
from tiermesh.cloud.prefix import Chain
from tiermesh.cloud.request import Job, Sequence, State
from tiermesh.cloud.scheduler import Scheduler, Work
from tiermesh.common.types import Sampling

HIGH, USUAL, LOW = range(3)


def scheduler(blocks: int = 100, slots: int = 4, step_tokens: int = 64) -> Scheduler:
    return Scheduler(BlockPool(blocks, 16), slots, step_tokens)


def sequence(number: int, prompt: int, answer: int = 8, tier: int = USUAL, **more: Any) -> Sequence:
    """A prompt of its own, under one salt."""
    tokens = [number * 1000 + i for i in range(prompt)]
    more = {"job": Job.GENERATE, "chain": Chain(bytes(32), 16)} | more
    return Sequence(
        id=number,
        prompt_length=prompt,
        tokens=tokens,
        max_tokens=answer,
        sampling=Sampling(),
        stop_ids=frozenset(),
        arrival=number,
        tier=tier,
        **more,
    )


def take_in(made: Scheduler, plan: list[Work]) -> float:
    """As the engine does: whoever has run all of its tokens gets one more. Seconds: 4 ms, 0.1 ms per read token."""
    duration_s = 0.004 + 1e-4 * sum(work.count for work in plan if work.read)
    made.observe(plan, duration_s)
    for work in plan:
        work.sequence.computed += work.count
        if not work.sequence.pending and work.sequence.job is Job.GENERATE:
            work.sequence.tokens.append(1)
        made.publish(work.sequence)
    return duration_s


def run(made: Scheduler, steps: int = 1) -> None:
    for _ in range(steps):
        take_in(made, made.plan(0.0))


def counts(plan: list[Work]) -> list[tuple[int, int]]:
    return [(work.sequence.id, work.count) for work in plan]


def settle(made: Scheduler) -> None:
    """Lets all that runs come to the point where it decodes."""
    while any(s.reading for s in made.running) or (made.waiting and len(made.running) < made.slots):
        run(made)


def test_those_who_decode_go_before_a_prompt_and_prompts_by_rank() -> None:
    made = scheduler(step_tokens=20)
    made.add(sequence(1, 6))
    run(made)
    made.add(sequence(2, 500))
    made.add(sequence(3, 12, due=5.0))
    take_in(made, plan := made.plan(0.0))
    assert counts(plan) == [(1, 1), (3, 8)], "due first, so read first"
    assert [work.sequence.id for work in made.plan(0.0)] == [1, 3, 2]


def test_the_next_to_run_is_of_the_highest_tier_then_due_first_then_first_come() -> None:
    made = scheduler(slots=1)
    for number, tier, due in ((1, LOW, 1.0), (2, USUAL, 9.0), (3, USUAL, 3.0), (4, USUAL, 3.0), (5, HIGH, math.inf)):
        made.add(sequence(number, 4, tier=tier, due=due))
    order = []
    while made.has_work:
        order.append(made.plan(0.0)[0].sequence.id)
        made.remove(made.running[0])
    assert order == [5, 3, 4, 2, 1]


def test_a_higher_tier_takes_the_slot_of_the_lowest_that_has_least_to_lose() -> None:
    made = scheduler(slots=3)
    members = [sequence(1, 10, tier=LOW), sequence(2, 40, tier=LOW), sequence(3, 5, tier=USUAL)]
    for member in members:
        made.add(member)
    settle(made)
    made.add(arrived := sequence(4, 8, tier=HIGH))
    plan = made.plan(0.0)
    assert arrived in made.running
    assert members[0].state is State.WAITING
    assert made.preemptions == {"slots": 1, "kv": 0, "growth": 0}
    assert {work.sequence.id for work in plan} == {4}, "lower tiers pause while a higher one reads"


def test_nobody_gives_way_to_its_own_tier() -> None:
    made = scheduler(slots=2, blocks=8)
    for number in (1, 2):
        made.add(sequence(number, 20))
    settle(made)
    made.add(sequence(3, 20, due=0.0))
    run(made)
    assert [s.id for s in made.waiting] == [3]
    assert sum(made.preemptions.values()) == 0


def test_a_higher_tier_takes_kv_of_as_few_as_it_needs() -> None:
    made = scheduler(blocks=12, slots=8)
    for number, prompt in ((1, 30), (2, 60), (3, 30)):
        made.add(sequence(number, prompt, tier=LOW))
    settle(made)
    made.add(sequence(4, 80, tier=HIGH))
    made.plan(0.0)
    assert made.preemptions == {"slots": 0, "kv": 2, "growth": 0}
    assert sorted(s.id for s in made.running) == [2, 4]


def test_what_even_all_victims_could_not_make_possible_costs_nobody_anything() -> None:
    made = scheduler(blocks=8, slots=8)
    made.add(sequence(1, 60, tier=HIGH))
    made.add(sequence(2, 10, tier=LOW))
    settle(made)
    made.add(sequence(3, 100, tier=USUAL))
    run(made)
    assert sorted(s.id for s in made.running) == [1, 2]


def test_a_victim_keeps_its_place_and_goes_on_where_it_was() -> None:
    made = scheduler(slots=1)
    made.add(victim := sequence(1, 40, tier=LOW))
    settle(made)
    known = list(victim.tokens)
    made.add(arrived := sequence(2, 8, tier=HIGH))
    made.add(sequence(3, 8, tier=LOW))
    made.plan(0.0)
    assert [s.id for s in made.waiting] == [1, 3]
    assert (victim.blocks, victim.preemptions) == ([], 1)
    made.remove(arrived)
    ((resumed, count),) = counts(made.plan(0.0))
    assert (resumed, count) == (1, 1), "nobody needed its blocks, so nothing is computed again"
    assert victim.tokens == known


def test_who_gave_way_twice_runs_only_where_all_that_it_may_need_is_free() -> None:
    made = scheduler(blocks=6, slots=2)
    made.add(victim := sequence(1, 16, answer=60, tier=LOW, preemptions=1))
    settle(made)
    made.add(first := sequence(2, 70, tier=HIGH))
    made.plan(0.0)
    assert victim.preemptions == 2
    run(made, 2)
    assert victim.state is State.WAITING, "it may need five blocks, and one is free"
    made.remove(first)
    run(made)
    assert len(victim.blocks) == 5
    made.add(sequence(3, 20, tier=HIGH))
    run(made, 40)
    assert victim.preemptions == 2


def test_a_long_answer_gives_its_slot_up_once_more_where_kv_is_not_short() -> None:
    for answer, blocks, preemptions in ((EARNED, 100, 3), (EARNED - 1, 100, 2), (EARNED, 7, 2)):
        made = scheduler(blocks=blocks, slots=1)
        victim = sequence(1, 16, answer=2 * EARNED if blocks == 100 else EARNED, tier=LOW, preemptions=2)
        victim.tokens += [1] * (answer - 1)
        made.add(victim)
        settle(made)
        assert victim.answer_length == answer
        made.add(arrived := sequence(2, 8, tier=HIGH))
        made.plan(0.0)
        assert victim.preemptions == preemptions
        assert (arrived in made.running) is (preemptions == 3)


def test_when_blocks_run_out_those_who_rank_behind_give_way() -> None:
    made = scheduler(blocks=8, slots=4)
    members = [sequence(i, 16, answer=90, due=float(-i)) for i in (1, 2, 3)]
    for member in members:
        made.add(member)
    run(made, 45)
    assert made.preemptions["growth"] > 0
    assert members[2].preemptions == 0, "the one that is due first never gives way"
    assert members[0].preemptions >= members[1].preemptions


def test_what_nobody_needs_of_a_session_stays_and_the_longest_unused_goes_first() -> None:
    made = scheduler(blocks=4, slots=4)
    sessions = [sequence(i, 16, job=Job.VERIFY) for i in (1, 2)]
    for now, session in enumerate(sessions):
        made.add(session)
        run(made)
        made.rest(session, float(now))
    assert made.pool.free == 4
    made.add(sequence(3, 40))
    run(made)
    for session in sessions:
        session.ask((), ())
        made.add(session)
    made.plan(0.0)
    assert [session.computed for session in sessions] == [0, 15]
    assert sum(made.preemptions.values()) == 0


def test_a_session_reads_all_but_the_last_token_ahead_and_an_ask_joins_midway() -> None:
    made = scheduler(blocks=16, step_tokens=10)
    session = sequence(1, 24, job=Job.VERIFY)
    made.add(session)
    (work,) = made.plan(0.0)
    assert (work.count, work.wanted) == (10, 0)
    session.computed += work.count
    session.ask((), (7, 8))
    assert not made.current(work), "what was planned before the ask is not what it waits for"
    shares = []
    while session.pending:
        (work,) = made.plan(0.0)
        shares.append((work.count, work.wanted))
        session.computed += work.count
    assert shares == [(10, 0), (6, 3)]
    single = sequence(3, 1, job=Job.VERIFY)
    made.add(single)
    assert single.state is State.IDLE


def test_a_prompt_finds_what_its_tenant_had_computed_and_runs_the_last_token_itself() -> None:
    for length, expected in ((64, 48), (65, 64), (70, 64), (16, 0), (17, 16)):
        made = scheduler()
        made.add(sequence(1, length))
        settle(made)
        again, other = sequence(2, length), sequence(3, length, chain=Chain(b"x" * 32, 16))
        again.tokens, other.tokens = list(range(1000, 1000 + length)), list(range(1000, 1000 + length))
        made.add(again)
        made.add(other)
        made.plan(0.0)
        assert (again.computed, other.computed) == (expected, 0)
        assert again.cached_prompt_tokens == expected


def test_lower_tiers_pause_while_a_higher_one_reads_but_for_every_eighth_step() -> None:
    made = scheduler(step_tokens=16)
    made.add(low := sequence(1, 4, answer=90, tier=LOW))
    settle(made)
    made.add(sequence(2, 400, tier=HIGH))
    steps = []
    for _ in range(16):
        take_in(made, plan := made.plan(0.0))
        steps.append(any(work.sequence is low for work in plan))
    assert steps.count(True) == 2
    assert steps.index(True) == 7


def test_who_is_in_haste_does_not_pause_for_a_higher_tier_that_reads() -> None:
    """Ninety tokens to come, some 4 ms each: 0.6 s are enough if nothing holds it up."""
    made = scheduler(step_tokens=16)
    made.add(hurried := sequence(1, 4, answer=100, tier=LOW, deadline=0.6))
    made.add(idle := sequence(2, 4, answer=100, tier=LOW, deadline=60.0))
    made.add(late := sequence(3, 4, answer=100, tier=LOW, deadline=0.2))
    run(made, 10)
    made.add(sequence(4, 400, tier=HIGH))
    plan = {work.sequence.id for work in made.plan(0.0)}
    assert plan == {hurried.id, 4}, "not who has time, nor who can't be in time any more"
    assert {idle.id, late.id}.isdisjoint(plan)


def test_who_is_in_haste_is_the_last_of_its_tier_to_give_way_but_keeps_no_higher_one_out() -> None:
    made = scheduler(slots=2)
    made.add(sequence(1, 4, answer=100, tier=LOW, deadline=0.6))
    settle(made)
    made.add(sequence(2, 40, answer=100, tier=LOW, deadline=60.0))
    run(made, 10)
    made.add(sequence(3, 8, answer=100, tier=HIGH))
    made.plan(0.0)
    assert sorted(s.id for s in made.running) == [1, 3], "though the other has more to compute again"
    made.add(sequence(4, 8, tier=HIGH))
    made.plan(0.0)
    assert sorted(s.id for s in made.running) == [3, 4]


def test_of_those_in_haste_who_has_more_time_gives_way() -> None:
    made = scheduler(slots=2)
    for number, deadline in ((1, 0.9), (2, 0.6)):
        made.add(sequence(number, 4, answer=100, tier=LOW, deadline=deadline))
    run(made, 10)
    made.add(sequence(3, 8, tier=HIGH))
    made.plan(0.0)
    assert sorted(s.id for s in made.running) == [2, 3]


def test_a_lower_tier_reads_nothing_in_the_step_that_gives_a_higher_one_its_first_token() -> None:
    made = scheduler(step_tokens=64)
    made.add(low := sequence(1, 200, tier=LOW))
    take_in(made, made.plan(0.0))
    made.add(high := sequence(2, 20, tier=HIGH))
    plan = made.plan(0.0)
    assert [(work.sequence, work.count) for work in plan] == [(high, 20)]
    take_in(made, plan)
    take_in(made, plan := made.plan(0.0))
    assert {work.sequence for work in plan} == {high, low}


def test_a_long_prompt_prolongs_the_steps_of_those_who_decode_by_a_bounded_share() -> None:
    made = scheduler(blocks=400, slots=9, step_tokens=128)
    for number in range(8):
        made.add(sequence(number, 4, answer=400))
    settle(made)
    made.add(long := sequence(9, 2000))
    times = []
    while long.computed < 2000:
        plan = made.plan(0.0)
        assert sum(work.sequence is not long for work in plan) == 8, "all of them get on in every step"
        times.append(take_in(made, plan))
    assert max(times) < 2 * 0.004
    assert len(times) < 2000 / 16, "and the prompt does get on"


def test_prompts_that_come_together_share_the_time_with_the_first_that_decodes() -> None:
    pace = Pace()
    pace.observe(1, 0, 0.002)
    pace.observe(0, 100, 0.012)  # A token adds 0.1 ms.
    assert pace.tokens(1, 0.1) == pace.tokens(1, 0.6) == 12
    assert pace.tokens(1, 15.0) == 300

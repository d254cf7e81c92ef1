"""The pure parts of dispatch: the choice among workers, known prefixes, the retry budget."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tiermesh.common.types import ChatMessage, Prompt
from tiermesh.router.choice import choose
from tiermesh.router.prefixes import Prefixes, keys_of
from tiermesh.router.retries import FLOOR, SHARE, WINDOW_S, RetryBudget


@dataclass
class Spot:
    address: str
    in_flight: int = 0
    limit: int = 8
    room: int = 0
    trial: bool = False


def test_the_less_busy_of_two_is_chosen_and_full_ones_only_when_all_are() -> None:
    draw = random.Random(1)
    idle, busy, full = Spot("idle"), Spot("busy", 4), Spot("full", 8)
    assert {choose([idle, busy], {}, draw).address for _ in range(20)} == {"idle"}  # type: ignore[union-attr]
    chosen = Counter(choose([busy, full, full, full], {}, draw).address for _ in range(50))  # type: ignore[union-attr]
    assert chosen == {"busy": 50}
    assert choose([full], {}, draw) is full
    roomy = Spot("roomy", 9, room=2)
    assert {choose([full, roomy, full], {}, draw).address for _ in range(20)} == {"roomy"}  # type: ignore[union-attr]
    assert choose([], {}, draw) is None
    tried = Spot("tried", 0, 1, trial=True)
    assert choose([idle, tried], {"idle": 1.0}, draw) is tried
    tried.in_flight = 1
    assert choose([idle, tried], {}, draw) is idle


def test_a_known_prefix_wins_up_to_half_of_the_places() -> None:
    draw = random.Random(1)
    for known, taken, expected in ((1.0, 3, "knows"), (1.0, 5, "other"), (0.25, 3, "other"), (0.5, 1, "knows")):
        workers = [Spot("knows", taken), Spot("other", 0)]
        chosen = choose(workers, {"knows": known}, draw)
        assert chosen is not None
        assert chosen.address == expected, (known, taken)


def test_two_choices_spread_the_load_far_better_than_one() -> None:
    draw = random.Random(7)
    workers = [Spot(str(n), 0, 1000) for n in range(20)]
    for _ in range(4000):
        chosen = choose(workers, {}, draw)
        assert chosen is not None
        chosen.in_flight += 1
    loads = [worker.in_flight for worker in workers]
    assert max(loads) - min(loads) <= 12  # one choice by chance leaves about 60 between them


LONG = "the same beginning of a prompt " * 40


def test_a_worker_is_known_for_what_it_was_sent_from_the_start_on() -> None:
    index = Prefixes()
    index.sent(keys_of("a", LONG), "one")
    index.sent(keys_of("a", LONG[:512]), "two")
    known = index.known(keys_of("a", LONG + "and more of it"))
    assert known["one"] == 1.0
    assert 0 < known["two"] < 0.5
    assert not index.known(keys_of("b", LONG))
    assert not index.known(keys_of("a", "x" + LONG))
    index.forget("one")
    assert set(index.known(keys_of("a", LONG))) == {"two"}


def test_prompts_of_all_kinds_have_keys_and_short_ones_none() -> None:
    turns: Prompt = (ChatMessage("system", LONG), ChatMessage("user", "hello"))
    again: Prompt = (ChatMessage("system", LONG), ChatMessage("user", "something else"))
    ids: Prompt = tuple(range(100))
    assert keys_of("a", turns)[:9] == keys_of("a", again)[:9]
    assert len(keys_of("a", ids)) == 3
    assert keys_of("a", "hello") == ()
    assert len(keys_of("a", LONG * 100)) == 64


def test_the_index_is_bounded_and_forgets_the_oldest() -> None:
    index = Prefixes(most=100)
    for number in range(50):
        index.sent(keys_of("a", f"{number} " + LONG), f"worker{number % 9}")
        assert len(index) <= 100
    assert index.known(keys_of("a", "49 " + LONG))
    assert not index.known(keys_of("a", "0 " + LONG))


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.integers(0, 30)), max_size=200))
def test_within_a_window_retries_stay_a_tenth_of_requests_and_what_ran(steps: list[tuple[float, bool, int]]) -> None:
    budget, now = RetryBudget(), 0.0
    requests: list[float] = []
    retries: list[float] = []
    ran: list[tuple[float, int]] = []
    for wait_s, retry, running in steps:
        now += wait_s
        ran.append((now, running))
        if not retry:
            budget.asked(now, running)
            requests.append(now)
            continue
        # Bins are of a second, so the window may be up to a second shorter.
        most = max(count for at, count in ran if at > now - WINDOW_S)
        if budget.spend(now, running):
            lately = [at for at in retries if at > now - WINDOW_S + 1]
            asked = [at for at in requests if at > now - WINDOW_S]
            assert len(lately) < SHARE * len(asked) + max(FLOOR, most)
            retries.append(now)
        else:
            assert len([at for at in retries if at > now - WINDOW_S]) >= max(FLOOR, running)


def test_the_answers_of_a_worker_that_dies_can_all_go_on_once() -> None:
    budget = RetryBudget()
    for running in range(64):
        budget.asked(100.0, running + 1)
    assert all(budget.spend(101.0, left) for left in range(64, 0, -1))
    assert [budget.spend(101.5, 1) for _ in range(7)] == [True] * 6 + [False]
    assert budget.spend(112.0, 1)

"""What is made of answers over a wide area, and which prompts are asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.bench.wide import plan
from tiermesh.bench.wide_figures import KINDS, LIMIT, Sample, summary, table
from tiermesh.common.errors import TiermeshError
from tiermesh.training.heldout import Prompt

WAYS = ("cloud only", "exact", "bounded")


def sample(way: str, kind: str, number: int, total_s: float, tokens: int = 5) -> Sample:
    return Sample(way, kind, number, total_s / 2, total_s, tokens, passes=2.0, asks=1, handed_over=False)


def samples(times: dict[str, float], rounds: int = 5) -> list[Sample]:
    return [
        sample(way, kind, n, times[way] * (n + 1))
        for way in WAYS
        for kind in ("command", "code")
        for n in range(rounds)
    ]


TIMES = st.fixed_dictionaries({way: st.floats(0.01, 1.0) for way in WAYS})


@given(TIMES)
def test_ratios_are_to_the_best_way(times: dict[str, float]) -> None:
    figures = summary(samples(times))
    for kind in KINDS:
        assert times[figures[kind]["best"]] == pytest.approx(min(times.values()))
        bounded, exact = figures[kind]["bounded_to_best"], figures[kind]["exact_to_cloud_only"]
        assert bounded["ratio"] == pytest.approx(times["bounded"] / min(times.values()))
        assert exact["ratio"] == pytest.approx(times["exact"] / times["cloud only"])
        assert exact["met"] is (exact["ratio"] <= LIMIT)
        assert bounded["spread"][0] <= bounded["ratio"] <= bounded["spread"][1]


def test_one_bad_round_is_no_claim() -> None:
    answers = samples(dict.fromkeys(WAYS, 0.1))
    answers.append(sample("bounded", "code", 3, 60.0))
    figures = summary(answers)["mix"]["bounded_to_best"]
    assert figures["met"]
    assert figures["spread"][1] > 10


def test_figures_of_one_way() -> None:
    answers = [sample(way, "code", 0, total_s, tokens) for way in WAYS for total_s, tokens in ((0.1, 5), (0.3, 1))]
    way = summary([*answers, *(sample(way, "command", 0, 0.1) for way in WAYS)])["code"]["exact"]
    assert way["total_ms"]["mean"] == pytest.approx(200)
    assert way["ttft_ms"]["p50"] == pytest.approx(100)
    assert way["ms_per_further_token"]["mean"] == pytest.approx(50 / 4), "an answer of one token has no further one"
    assert way["passes_per_token"] == pytest.approx(4 / 6)


def test_the_table_marks_what_was_missed() -> None:
    row = {"rtt_s": 0.05, "loss": 0.01} | summary(samples({"cloud only": 0.1, "exact": 0.2, "bounded": 0.1}))
    lines = table([row]).splitlines()
    assert len(lines) == 1 + len(KINDS)
    assert all(" 2.00!" in line and " 1.00 " in line for line in lines[1:])


@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_no_prompt_is_asked_twice(warmups: int, rounds: int, commands: int, code: int) -> None:
    counts = {"command": commands, "code": code}
    prompts = [Prompt(kind, f"{kind}{i}") for kind, count in counts.items() for i in range(warmups + rounds * count)]
    first, planned = plan(prompts, warmups, rounds, counts)
    asked = [*first, *(prompt for part in planned for prompt in part)]
    assert sorted(prompt.prompt for prompt in asked) == sorted(prompt.prompt for prompt in prompts)
    assert len(first) == 2 * warmups
    for part in planned:
        assert [sum(prompt.kind == kind for prompt in part) for kind in counts] == [commands, code]
    with pytest.raises(TiermeshError, match="held-out"):
        plan(prompts[1:], warmups, rounds, counts)

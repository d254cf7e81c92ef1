"""The texts of the drift benchmark, and what it reads out of a stream."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest

from tiermesh.bench.drift import fate_of
from tiermesh.bench.drifted import drifts, in_german, sentences
from tiermesh.bench.streams import Moment, Note, Outcome
from tiermesh.edge.drift import Standing
from tiermesh.edge.ledger import ALLOWANCE
from tiermesh.training.commands import generate


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_call_can_be_said_in_german(split: str) -> None:
    rng = random.Random(0)
    for command in islice(generate(split, 5), 300):  # type: ignore[arg-type]
        for call in command.calls:
            said = in_german(call, rng)
            assert "{" not in said
            assert "None" not in said
            assert call.after_s is None or str(call.after_s) in said


def test_drifts_are_distinct_texts_that_end_with_a_line() -> None:
    for name, texts in drifts(40).items():
        assert len({text.prompt for text in texts}) == len(texts) >= 30, name
        assert all(text.prompt.endswith("\n") for text in texts)


def test_sentences_leave_out_what_is_no_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading that is long enough to be taken for a sentence\n\n"
        "The first sentence goes over two lines and is\nlong enough. Short one.\n\n"
        "```\nthis is code that is long enough to be taken for a sentence.\n```\n\n"
        "| a row of a table | that is long enough to be taken for a sentence |\n\n"
        "- An item of a list has sentences too, and they count.\n"
    )
    assert list(sentences(page)) == [
        "The first sentence goes over two lines and is long enough.",
        "An item of a list has sentences too, and they count.",
    ]


def moment(units: int, shown: int, wrong: int, bound: float, standing: Standing = Standing.GOOD) -> Moment:
    return Moment(Note(0, shown, min(wrong, 10), bound, ALLOWANCE + 5, 0, standing), units, wrong)


def test_a_fate_counts_from_the_change_on() -> None:
    outcome = Outcome(
        [
            moment(10, 100, 2, 20.0),
            moment(20, 200, 3, 20.0),
            moment(24, 260, 40, 39.0),
            moment(26, 280, 60, 90.0, Standing.DRIFTED),
            moment(30, 280, 60, 70.0, Standing.DRIFTED),
        ],
        onset=2,
        units=[21, 9],
    )
    fate = fate_of(outcome, 0.05)
    assert fate.withdrawn == (5, 80, 57)
    assert (fate.alarm, fate.good_at_onset, fate.exceeded) == (True, True, True)
    assert (fate.shown, fate.wrong) == (80, 57)
    assert fate.slack == pytest.approx(0.05 * 280 + ALLOWANCE - 60)
    assert fate.slack_granted == pytest.approx(fate.slack + 5)
    assert fate.slack_counted == pytest.approx(0.05 * 100 + ALLOWANCE - 2)
    assert (fate.bound, fate.wrong_in_all) == (70.0, 60)


def test_a_stream_that_keeps_its_trust_has_no_withdrawal() -> None:
    outcome = Outcome([moment(10, 100, 2, 20.0), moment(20, 200, 3, 20.0)], onset=1, units=[10, 10])
    fate = fate_of(outcome, 0.05)
    assert (fate.withdrawn, fate.alarm, fate.exceeded) == (None, False, False)
    outcome.moments[0] = moment(10, 100, 2, 20.0, Standing.UNPROVEN)
    assert not fate_of(outcome, 0.05).good_at_onset

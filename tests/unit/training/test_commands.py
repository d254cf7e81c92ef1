"""Commands: the truth says what the line says, and held-out means unseen in templates and in pairs."""

import json
from itertools import islice

import pytest

from tiermesh.training.commands import Command, generate, split_of
from tiermesh.training.phrases import Phrase, fill, spell
from tiermesh.training.world import COLOURS, HOME, WORKSHOP


def draw(split: str, count: int, seed: int = 5) -> list[Command]:
    return list(islice(generate(split, seed), count))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def train() -> list[Command]:
    return draw("train", 6000)


@pytest.fixture(scope="module")
def heldout() -> list[Command]:
    return draw("heldout", 900)


def test_splits_are_disjoint_in_templates_and_in_pairs(train: list[Command], heldout: list[Command]) -> None:
    assert not {c.template for c in train} & {c.template for c in heldout}
    assert not frozenset().union(*(c.combination for c in train)) & frozenset().union(*(c.combination for c in heldout))


def test_every_part_of_a_command_is_of_its_split(heldout: list[Command]) -> None:
    for command in heldout:
        assert {split_of(name) for name in (command.template, *command.combination)} == {"heldout"}


def test_heldout_words_all_occur_in_training(train: list[Command], heldout: list[Command]) -> None:
    """Held-out commands are new arrangements; a word never met would test the tokenizer, not the model."""
    known = {word.strip(",.;") for command in train for word in command.text.split()}
    plain = [c for c in heldout if not c.template.endswith("|typos")]
    unknown = {word.strip(",.;") for c in plain for word in c.text.split()} - known
    assert len({word for word in unknown if word.isalpha()}) == 0


def test_equal_seeds_give_equal_streams_and_others_do_not() -> None:
    assert draw("train", 50, 1) == draw("train", 50, 1)
    assert draw("train", 50, 1) != draw("train", 50, 2)


def test_all_levels_come_and_truth_is_compact_json(train: list[Command]) -> None:
    assert {command.level for command in train} == {1, 2, 3}
    for command in train[:500]:
        calls = json.loads(command.truth)
        assert calls
        assert json.dumps(calls, separators=(",", ":")) == command.truth
        assert "\n" not in command.text


def test_values_stay_in_their_device_s_range(train: list[Command]) -> None:
    ranges = {kind.name: kind.quantity for kind in (*HOME, *WORKSHOP)}
    for call in (call for command in train for call in command.calls):
        quantity = ranges[call.device.split(".")[0]]
        if quantity is not None and call.setting == quantity.name:
            assert quantity.low <= call.value <= quantity.high
        elif call.setting == "colour":
            assert call.value in COLOURS
        else:
            assert isinstance(call.value, bool)


def test_level_one_names_place_and_value_in_the_line(train: list[Command]) -> None:
    for command in (c for c in train if c.level == 1):
        (call,) = command.calls
        assert call.device.split(".")[1].replace("_", " ") in command.text
        if isinstance(call.value, int) and not isinstance(call.value, bool) and "open" not in command.text:
            assert str(call.value) in command.text or "close" in command.text or "shut" in command.text


def test_exceptions_leave_one_out_and_sequences_add_up(train: list[Command]) -> None:
    spared = [c for c in train if "all of them" in c.text]
    assert spared
    for command in spared:
        named = command.text.split("all of them")[1]
        assert not any(f" {call.device.split('.')[1].replace('_', ' ')}" in named for call in command.calls)
    delays = [[call.after_s for call in c.calls] for c in train if c.level == 3 and len(c.calls) == 3]
    delays = [row for row in delays if row[1] is not None and row[2] is not None]
    assert delays
    assert all(row[0] is None and 0 < row[1] < row[2] for row in delays)


def test_conditions_carry_a_sensor(train: list[Command]) -> None:
    conditions = [call.condition for command in train for call in command.calls if call.condition is not None]
    assert {sensor.split(".")[0] for sensor, _, _ in conditions} == {"temperature", "humidity", "presence"}
    assert all(isinstance(operand, bool) == (operator == "is") for _, operator, operand in conditions)


def test_fill_keeps_slots_in_the_order_of_the_words() -> None:
    parts = {"d": Phrase("the {} {}", ("kitchen", "light")), "v": Phrase("{} %", ("40",))}
    filled = fill("at {v} put {d}", parts)
    assert filled.template == "at {} % put the {} {}"
    assert filled.text() == "at 40 % put the kitchen light"


@pytest.mark.parametrize(
    ("number", "words"),
    [(7, "seven"), (20, "twenty"), (21, "twenty one"), (99, "ninety nine"), (15, "15"), (100, "100")],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert spell(number) == words

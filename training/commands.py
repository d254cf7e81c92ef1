"""Spoken commands to homes and workshops with their ground truth: one line of text in, compact JSON calls out.

Level 1 is one plain call; level 2 has several devices, synonyms, units, spelled numbers and times; level 3 has
conditions, exceptions, corrections, sequences, typos and small sums on a state that the line gives.

Held-out means unseen twice over: a held-out command's template (all words but the slots) never occurs in training, and
no (device, setting) pair of it does either. Both are assigned by hash, so the split doesn't depend on the seed.
Templates are built of parts, and the parts do occur: what is held out is the arrangement, not the vocabulary.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .phrases import Phrase, action, amount, device, fill, join, moment, settings, span
from .world import SENSORS, Kind, Place, Quantity, Value, sites

Split = Literal["train", "heldout"]
_HELDOUT_SHARE = 12  # percent of the templates, and of the pairs
_BEFORE = ("",) * 6 + ("please ", "can you ", "could you ", "now ", "hey, ", "would you ", "i want you to ", "ok, ")
_AFTER = ("",) * 6 + (" please", " now", " for me", ", thanks", " right away", ".")


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a device; times in seconds or HH:MM, `condition` a sensor with its comparison."""

    device: str
    setting: str
    value: Value
    at: str | None = None
    after_s: int | None = None
    for_s: int | None = None
    condition: tuple[str, str, int | bool] | None = None

    def to_json(self) -> dict[str, object]:
        """The call as the house executes it."""
        call: dict[str, object] = {"device": self.device, "set": {self.setting: self.value}}
        extras = {"at": self.at, "in": self.after_s, "for": self.for_s}
        call |= {name: value for name, value in extras.items() if value is not None}
        if self.condition is not None:
            sensor, operator, operand = self.condition
            call["if"] = {"sensor": sensor, operator: operand}
        return call

    def pairs(self) -> set[str]:
        """The (device, setting) pairs that this call combines."""
        pair = {f"{self.device}:{self.setting}"}
        return pair if self.condition is None else pair | {f"{self.condition[0]}:{self.condition[1]}"}


@dataclass(frozen=True, slots=True)
class Command:
    """A line of text with its template, and the calls that it asks for."""

    level: int
    template: str
    text: str
    calls: tuple[Call, ...]

    @property
    def truth(self) -> str:
        """The calls as compact JSON."""
        return json.dumps([call.to_json() for call in self.calls], separators=(",", ":"))

    @property
    def combination(self) -> frozenset[str]:
        """All (device, setting) pairs of the command."""
        return frozenset().union(*(call.pairs() for call in self.calls))


def split_of(name: str) -> Split:
    """The split of a template or of a pair, by hash."""
    digest = hashlib.sha256(name.encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") % 100 < _HELDOUT_SHARE else "train"


def generate(split: Split, seed: int, levels: tuple[int, ...] = (1, 2, 3)) -> Iterator[Command]:
    """An endless stream of commands of one split, the levels drawn evenly; equal seeds give equal streams."""
    rng = random.Random(f"{split}/{seed}")
    while True:
        level = rng.choice(levels)
        drawn = _Draw(rng, split, level).command()
        if drawn is not None and split_of(drawn.template) == split:
            yield drawn


_Part = tuple[Phrase, tuple[Call, ...]]


class _Draw:
    """Draws one command; methods return None when the split has no fitting pair, and the caller draws again."""

    def __init__(self, rng: random.Random, split: Split, level: int) -> None:
        self.rng, self.split, self.level = rng, split, level

    def command(self) -> Command | None:
        """A whole line of the level, with courtesies around it and, at level 3, sometimes typos in it."""
        shapes: dict[int, tuple[Callable[[], _Part | None], ...]] = {
            1: (self.plain,),
            2: (self.plain, self.several, self.several, self.same, self.same, self.timed, self.timed),
            3: (self.conditional, self.excepted, self.corrected, self.sequence, self.sum),
        }
        part = self.rng.choice(shapes[self.level])()
        if part is None:
            return None
        phrase, calls = part
        if self.level < 3:
            phrase = Phrase(self.rng.choice(_BEFORE)) + phrase
        phrase = phrase + self.rng.choice(_AFTER)
        template, text = phrase.template, phrase.text()
        if self.level == 3 and self.rng.random() < 0.25:
            template, text = template + "|typos", _with_typos(text, self.rng)
        return Command(self.level, template, text, calls)

    def target(self) -> tuple[Kind, Place, str]:
        """A kind, a place and a setting whose pair belongs to the split."""
        while True:
            kinds, places = self.rng.choice(sites())
            kind, place = self.rng.choice(kinds), self.rng.choice(places)
            setting = self.rng.choice(settings(kind))
            if self.allows(kind, place, setting):
                return kind, place, setting

    def allows(self, kind: Kind, place: Place, setting: str) -> bool:
        return split_of(f"{kind.name}.{place.name}:{setting}") == self.split

    def plain(self) -> _Part:
        """One device, one setting."""
        kind, place, setting = self.target()
        hard = self.level > 1
        frame, amount_phrase, value = action(kind, setting, self.rng, hard=hard)
        words = fill(frame, {"d": device(kind, place, self.rng, synonyms=hard), "v": amount_phrase})
        return words, (Call(f"{kind.name}.{place.name}", setting, value),)

    def several(self) -> _Part:
        """Two or three unrelated actions in one line."""
        parts = [self.plain() for _ in range(self.rng.choice((2, 2, 3)))]
        return join([words for words, _ in parts], self.rng), tuple(call for _, calls in parts for call in calls)

    def rooms(self, count: int) -> tuple[Kind, list[Place], str] | None:
        """One kind and setting in several places of the split."""
        kind, _, setting = self.target()
        places = next(places for kinds, places in sites() if kind in kinds)
        fitting = [place for place in places if self.allows(kind, place, setting)]
        return (kind, self.rng.sample(fitting, count), setting) if len(fitting) >= count else None

    def same(self) -> _Part | None:
        """One action for devices in two or three places."""
        found = self.rooms(self.rng.choice((2, 3)))
        if found is None:
            return None
        kind, places, setting = found
        frame, value_phrase, value = action(kind, setting, self.rng, hard=True)
        noun = Phrase("the {} in ", (self.rng.choice(kind.nouns),))
        words = fill(frame, {"d": noun + _places(places, self.rng), "v": value_phrase})
        return words, tuple(Call(f"{kind.name}.{place.name}", setting, value) for place in places)

    def timed(self) -> _Part:
        """An action with a time, a delay or a duration."""
        words, (call,) = self.plain()
        form = self.rng.randrange(3)
        if form == 0:
            clock_phrase, clock = moment(self.rng)
            late = Phrase(self.rng.choice(("at ", "at "))) + clock_phrase
            timed = replace(call, at=clock)
        else:
            span_phrase, seconds = span(self.rng)
            late = Phrase("in " if form == 1 else "for ") + span_phrase
            timed = replace(call, after_s=seconds) if form == 1 else replace(call, for_s=seconds)
        front = self.rng.random() < 0.4
        return (late + ", " + words if front else words + " " + late), (timed,)

    def conditional(self) -> _Part | None:
        """An action that waits for a sensor."""
        words, (call,) = self.plain()
        sensor = self.rng.choice(SENSORS)
        frame, operator = self.rng.choice(sensor.frames)
        places = self.rng.choice(sites())[1]
        place = self.rng.choice(places)
        operand: int | bool = self.rng.randint(sensor.low, sensor.high) if "{}" in frame else operator == "true"
        slots = (place.full, str(operand)) if "{}" in frame else (place.full,)
        operator = operator if "{}" in frame else "is"
        if split_of(f"{sensor.name}.{place.name}:{operator}") != self.split:
            return None
        when = Phrase(self.rng.choice(("if ", "when ", "as soon as ")) + "{} " + frame, slots)
        calls = (replace(call, condition=(f"{sensor.name}.{place.name}", operator, operand)),)
        return (when + ", " + words if self.rng.random() < 0.6 else words + " " + when), calls

    def excepted(self) -> _Part | None:
        """An action for a list of places, less one of them."""
        found = self.rooms(self.rng.choice((2, 3, 4) if self.split == "train" else (2, 3)))
        if found is None:
            return None
        kind, places, setting = found
        frame, value_phrase, value = action(kind, setting, self.rng, hard=False)
        spared = self.rng.choice(places)
        noun = self.rng.choice(kind.nouns)
        listed = Phrase(self.rng.choice(("we have a {} in ", "there is a {} in ")), (noun,)) + _places(places, self.rng)
        words = fill(frame, {"d": Phrase("all of them"), "v": value_phrase})
        spare = Phrase(self.rng.choice((" except in {}", " but not in {}", " but the one in {}")), (spared.full,))
        calls = tuple(Call(f"{kind.name}.{place.name}", setting, value) for place in places if place != spared)
        return listed + self.rng.choice((". ", ", so ", "; ")) + words + spare, calls

    def corrected(self) -> _Part:
        """A value or a whole action that is taken back at once."""
        words, _ = self.plain()
        kind, place, setting = self.target()
        if kind.quantity is None or setting != kind.quantity.name or self.rng.random() < 0.3:
            other, calls = self.plain()
            return words + self.rng.choice((", no, instead ", ", forget that, ", ", scratch that, ")) + other, calls
        first, _ = amount(kind.quantity, self.rng, hard=False)
        second, value = amount(kind.quantity, self.rng, hard=False)
        value = kind.quantity.clip(value)
        frame = self.rng.choice(("set {d} to {v}", "bring {d} to {v}", "put {d} at {v}"))
        begun = fill(frame, {"d": device(kind, place, self.rng, synonyms=True), "v": first})
        turn = self.rng.choice((", no, ", ", i mean ", ", sorry, ", ", wait, make that ", ", or rather "))
        return begun + turn + second, (Call(f"{kind.name}.{place.name}", setting, value),)

    def sequence(self) -> _Part:
        """Two or three actions, each some time after the one before."""
        words, calls = self.plain()
        elapsed = 0
        for _ in range(self.rng.choice((1, 1, 2))):
            span_phrase, seconds = span(self.rng)
            elapsed += seconds
            more, (call,) = self.plain()
            link = self.rng.choice((", then after {}", ", and {} later", ", wait {} and")).split("{}")
            words = words + link[0] + span_phrase + link[1] + " " + more
            calls = (*calls, replace(call, after_s=elapsed))
        return words, calls

    def sum(self) -> _Part:
        """A state and a change to it; the answer is clipped to the device's range."""
        while True:
            kind, place, setting = self.target()
            if kind.quantity is not None and setting == kind.quantity.name:
                break
        quantity = kind.quantity
        state_phrase, state = amount(quantity, self.rng, hard=False)
        frame = self.rng.choice(("{d} is at {v}", "{d} stands at {v}", "right now {d} is at {v}"))
        said = fill(frame, {"d": device(kind, place, self.rng, synonyms=True), "v": state_phrase})
        change, value = _change(quantity, state, self.rng)
        call = Call(f"{kind.name}.{place.name}", setting, quantity.clip(value))
        return said + self.rng.choice((". ", ", ", "; ")) + change, (call,)


def _places(places: list[Place], rng: random.Random) -> Phrase:
    return join([Phrase("{}", (place.full,)) for place in places], rng)


def _change(quantity: Quantity, state: int, rng: random.Random) -> tuple[Phrase, int]:
    """A relative change of `state` in words, and the new value before clipping."""
    if rng.random() < 0.15:
        return (Phrase("halve it"), state // 2) if state % 2 == 0 else (Phrase("double it"), state * 2)
    step = quantity.step * rng.randint(1, 4)
    if rng.random() < 0.5:
        frames = (f"make it {{}}{quantity.units[0]} {quantity.up}", "raise it by {}", "turn it up by {}", "add {}")
        return Phrase(rng.choice(frames), (str(step),)), state + step
    frames = (f"make it {{}}{quantity.units[0]} {quantity.down}", "lower it by {}", "turn it down by {}", "take off {}")
    return Phrase(rng.choice(frames), (str(step),)), state - step


def _with_typos(text: str, rng: random.Random) -> str:
    """One or two slips of the finger (swap, drop, double) inside longer words; numbers stay whole."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for index in rng.sample(long, min(len(long), rng.choice((1, 2)))):
        word, at = words[index], rng.randrange(1, len(words[index]) - 1)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[index] = rng.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]))
    return " ".join(words)

"""How the parts of a command are said: devices, values, times, switches. Each part keeps words and slots apart.

A `Phrase` holds a template with `{}` where slots go, and the slots' values in order; phrases concatenate, so the
template of a whole command is known beside its text.
"""

import random
from dataclasses import dataclass

from .world import COLOURS, Kind, Place, Quantity, Value


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words with `{}` for slots, and the slots."""

    template: str
    slots: tuple[str, ...] = ()

    def text(self) -> str:
        """The words as said."""
        return self.template.format(*self.slots)

    def __add__(self, other: "Phrase | str") -> "Phrase":
        more = Phrase(other) if isinstance(other, str) else other
        return Phrase(self.template + more.template, self.slots + more.slots)


def fill(frame: str, parts: dict[str, Phrase]) -> Phrase:
    """Put phrases into a frame's `{d}` and `{v}`, keeping slots in the order of the words."""
    phrase = Phrase("")
    for piece in frame.replace("{", "\0{").replace("}", "}\0").split("\0"):
        phrase = phrase + (parts[piece[1:-1]] if piece[:1] == "{" else piece)
    return phrase


def join(phrases: list[Phrase], rng: random.Random) -> Phrase:
    """A spoken list: "a, b and c"."""
    joined = phrases[0]
    last = rng.choice((" and ", " and also ", " as well as ")) if len(phrases) == 2 else rng.choice((" and ", ", and "))
    for index, phrase in enumerate(phrases[1:], start=2):
        joined = joined + (last if index == len(phrases) else ", ") + phrase
    return joined


def device(kind: Kind, place: Place, rng: random.Random, *, synonyms: bool) -> Phrase:
    """The device with its place."""
    noun = rng.choice(kind.nouns if synonyms else kind.nouns[:2])
    form = rng.randrange(4)
    if form < 2:
        return Phrase("the {} {}", (place.spoken, noun))
    return Phrase("the {} in {}", (noun, place.full)) if form == 2 else Phrase("{} {}", (place.spoken, noun))


_ON = (
    "turn on {d}",
    "switch on {d}",
    "turn {d} on",
    "switch {d} on",
    "start {d}",
    "power up {d}",
    "{d} on",
    "activate {d}",
)
_OFF = (
    "turn off {d}",
    "switch off {d}",
    "turn {d} off",
    "switch {d} off",
    "stop {d}",
    "power down {d}",
    "{d} off",
    "shut {d} off",
)
_OPEN = ("open {d}", "open up {d}", "open {d} all the way")
_CLOSED = ("close {d}", "shut {d}", "close {d} all the way")
_NUMBER = ("set {d} to {v}", "put {d} at {v}", "bring {d} to {v}", "adjust {d} to {v}", "change {d} to {v}",
           "{d} to {v}", "i want {d} at {v}", "get {d} to {v}")  # fmt: skip
_COLOUR = ("make {d} {v}", "turn {d} {v}", "set {d} to {v}", "colour {d} {v}", "change {d} to {v}")


def settings(kind: Kind) -> tuple[str, ...]:
    """What can be set on a kind, by its name in the JSON."""
    names: tuple[str, ...] = ("on",) if kind.switches else ()
    names += (kind.quantity.name,) if kind.quantity else ()
    names += ("colour",) if kind.colours else ()
    return names + (("locked",) if kind.name == "lock" else ())


def action(kind: Kind, setting: str, rng: random.Random, *, hard: bool) -> tuple[str, Phrase, Value]:
    """A frame with `{d}` (and perhaps `{v}`) for a setting, the value's phrase, and the value itself."""
    if setting == "on":
        on = rng.random() < 0.5
        return rng.choice(_ON if on else _OFF), Phrase(""), on
    if setting == "locked":
        locked = rng.random() < 0.5
        return ("lock {d}" if locked else "unlock {d}"), Phrase(""), locked
    if setting == "colour":
        colour = rng.choice(COLOURS)
        return rng.choice(_COLOUR), Phrase("{}", (colour,)), colour
    quantity = kind.quantity
    assert quantity is not None, "every other setting is the kind's quantity"
    if kind.name == "blind" and rng.random() < 0.3:
        opened = rng.random() < 0.5
        return rng.choice(_OPEN if opened else _CLOSED), Phrase(""), 100 if opened else 0
    frames = kind.verbs * 2 + _NUMBER + (f"set the {quantity.name} of {{d}} to {{v}}",)
    phrase, value = amount(quantity, rng, hard=hard)
    return rng.choice(frames), phrase, value


_FRACTIONS = {
    "half": 50,
    "a quarter": 25,
    "three quarters": 75,
    "full": 100,
    "maximum": 100,
    "a third": 33,
    "two thirds": 67,
}
_TENS = {
    "ten": 10,
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
_ONES = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def spell(number: int) -> str:
    """A number from 10, 20…29, 30…39 to 99 in words; digits for all others."""
    for word, tens in _TENS.items():
        if number == tens:
            return word
        if tens >= 20 and tens < number < tens + 10:
            return f"{word} {_ONES[number - tens]}"
    return _ONES[number] if 0 < number < 10 else str(number)


def amount(quantity: Quantity, rng: random.Random, *, hard: bool) -> tuple[Phrase, int]:
    """A value with its unit; `hard` allows fractions, numbers in words, kilopascals and thousands."""
    value = quantity.draw(rng)
    if hard and rng.random() < 0.5:
        if quantity.high == 100 and rng.random() < 0.6:
            word = rng.choice(tuple(_FRACTIONS))
            return Phrase("{}", (word,)), _FRACTIONS[word]
        if quantity.name == "pressure":
            return Phrase("{} kPa", (str(value * 100),)), value
        if quantity.name == "rpm" and value % 100 == 0 and value > 1000:
            return Phrase("{} thousand rpm", (f"{value / 1000:g}",)), value
        if quantity.high <= 100:
            return Phrase(
                "{}" + rng.choice((" percent", " %") if quantity.high == 100 else quantity.units), (spell(value),)
            ), value
    return Phrase("{}" + rng.choice(quantity.units), (str(value),)), value


def moment(rng: random.Random) -> tuple[Phrase, str]:
    """A time of day and its HH:MM."""
    hour, form = rng.randrange(1, 12), rng.randrange(5)
    evening = rng.random() < 0.5
    clock = hour + 12 * evening
    half = (" in the morning", " in the evening")[evening]
    if form == 0:
        return Phrase("{}" + (" am", " pm")[evening], (str(hour),)), f"{clock:02}:00"
    if form == 1:
        minute = rng.randrange(5, 60, 5)
        return Phrase("{}:{}", (f"{clock:02}", f"{minute:02}")), f"{clock:02}:{minute:02}"
    if form == 2:
        return Phrase("half past {}" + half, (spell(hour),)), f"{clock:02}:30"
    if form == 3:
        return Phrase("quarter past {}" + half, (spell(hour),)), f"{clock:02}:15"
    return (Phrase("noon"), "12:00") if evening else (Phrase("midnight"), "00:00")


def span(rng: random.Random) -> tuple[Phrase, int]:
    """A length of time and its seconds."""
    form = rng.randrange(4)
    if form == 0:
        return Phrase("{}", (rng.choice(("an hour",)),)), 3600
    if form == 1:
        return Phrase("half an hour"), 1800
    if form == 2:
        seconds = rng.choice((10, 20, 30, 45, 90))
        return Phrase("{} seconds", (str(seconds),)), seconds
    minutes = rng.choice((2, 3, 4, 5, 10, 15, 20, 30, 45))
    return Phrase("{} minutes", (str(minutes) if rng.random() < 0.6 else spell(minutes),)), minutes * 60

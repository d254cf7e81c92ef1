"""Texts that an edge calibrated on spoken commands was not made for: German, shuffled words, prose, source code."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..models import starter
from ..training.commands import Call, Command, generate
from ..training.heldout import read_heldout
from .tree import ROOT

_SEED = 31337
"""Of the commands: other ones than the calibration's and those of the other benchmarks."""

_DEVICES = {
    "light": "das Licht", "blind": "die Jalousie", "heating": "die Heizung", "fan": "den Ventilator",
    "speaker": "den Lautsprecher", "socket": "die Steckdose", "humidifier": "den Luftbefeuchter", "lock": "die Tür",
    "drill": "die Bohrmaschine", "lathe": "die Drehbank", "saw": "die Säge", "compressor": "den Kompressor",
    "extractor": "die Absaugung", "kiln": "den Ofen", "laser": "den Laser", "pump": "die Pumpe",
    "conveyor": "das Förderband",
}  # fmt: skip
_PLACES = {
    "kitchen": "in der Küche", "bedroom": "im Schlafzimmer", "bathroom": "im Bad", "hallway": "im Flur",
    "garage": "in der Garage", "office": "im Büro", "attic": "auf dem Dachboden", "cellar": "im Keller",
    "nursery": "im Kinderzimmer", "living_room": "im Wohnzimmer", "dining_room": "im Esszimmer",
    "guest_room": "im Gästezimmer", "study": "im Arbeitszimmer", "porch": "auf der Veranda",
    "laundry": "in der Waschküche", "balcony": "auf dem Balkon", "pantry": "in der Speisekammer",
    "library": "in der Bibliothek", "playroom": "im Spielzimmer", "sauna": "in der Sauna",
    "conservatory": "im Wintergarten", "staircase": "im Treppenhaus", "gym": "im Fitnessraum", "den": "im Hobbyraum",
}  # fmt: skip
_STATIONS = {"bay": "an Platz", "line": "an Linie", "cell": "in Zelle", "hall": "in Halle"}
_UNITS = {"temperature": "Grad", "rpm": "Umdrehungen", "pressure": "bar", "flow": "Liter"}
_COLOURS = {
    "red": "rot", "green": "grün", "blue": "blau", "white": "weiß", "amber": "gelb", "purple": "lila",
    "pink": "rosa", "orange": "orange",
}  # fmt: skip
_SENSORS = {
    ("temperature", "above"): "es {place} wärmer als {operand} Grad ist",
    ("temperature", "below"): "es {place} kälter als {operand} Grad ist",
    ("humidity", "above"): "die Luft {place} feuchter als {operand} % ist",
    ("humidity", "below"): "die Luft {place} trockener als {operand} % ist",
    ("presence", "True"): "jemand {place} ist",
    ("presence", "False"): "niemand {place} ist",
}


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, and how long its answer may get."""

    prompt: str
    max_tokens: int


_COMMAND_TOKENS, _OTHER_TOKENS = 96, 48


def commands(count: int) -> list[Text]:
    """What the edge was calibrated for: held-out commands."""
    return [_command_text(command.text) for command in _commands(count)]


def drifts(count: int) -> dict[str, list[Text]]:
    """Texts of each kind, at most `count`; there are fewer of prose and code when the repository has fewer."""
    makers: Mapping[str, Callable[[int], list[Text]]] = {
        "German": _german,
        "shuffled": _shuffled,
        "prose": _prose,
        "code": _code,
    }
    return {name: make(count) for name, make in makers.items()}


def _commands(count: int, seed: int = _SEED) -> list[Command]:
    """Distinct ones, the levels drawn evenly."""
    found: dict[str, Command] = {}
    stream = generate("heldout", seed)
    while len(found) < count:
        command = next(stream)
        found.setdefault(command.text, command)
    return list(found.values())


def _command_text(words: str) -> Text:
    return Text(words + "\n", _COMMAND_TOKENS)


def _german(count: int) -> list[Text]:
    rng = random.Random(_SEED)
    told = (" und ".join(in_german(call, rng) for call in command.calls) for command in _commands(count, _SEED + 1))
    return [_command_text(words) for words in dict.fromkeys(told)]


def in_german(call: Call, rng: random.Random) -> str:
    """A call as somebody might say it."""
    kind, _, place = call.device.partition(".")
    target = f"{_DEVICES[kind]} {_place(place)}"
    if call.setting == "on":
        verb, words = rng.choice((("schalte", "ein"), ("mach", "an")) if call.value else (("schalte", "aus"),))
    elif call.setting == "locked":
        verb, words = ("schließ", "ab") if call.value else ("schließ", "auf")
    elif call.setting == "colour":
        verb, words = rng.choice(("mach", "färbe")), _COLOURS[str(call.value)]
    else:
        unit = "mm/s" if kind == "conveyor" else _UNITS.get(call.setting, "%")
        verb, words = rng.choice(("stell", "setz", "bring")), f"auf {call.value} {unit}"
    said = f"{verb} {target} {words}"
    said += f" um {call.at} Uhr" if call.at else ""
    said += f" in {call.after_s} Sekunden" if call.after_s else ""
    said += f" für {call.for_s} Sekunden" if call.for_s else ""
    if call.condition is None:
        return said
    sensor, operator, operand = call.condition
    name, _, where = sensor.partition(".")
    frame = _SENSORS[name, str(operand) if operator == "is" else operator]
    return f"{said}, wenn {frame.format(place=_place(where), operand=operand)}"


def _place(name: str) -> str:
    station, _, number = name.rpartition("_")
    return f"{_STATIONS[station]} {number}" if station in _STATIONS else _PLACES[name]


def _shuffled(count: int) -> list[Text]:
    rng = random.Random(_SEED)

    def shuffled(words: str) -> str:
        return " ".join(rng.sample(words.split(), len(words.split())))

    return [_command_text(shuffled(command.text)) for command in _commands(count, _SEED + 2)]


def _prose(count: int) -> list[Text]:
    """Sentences of this repository's pages."""
    pages = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    found = [sentence for page in pages if page.is_file() for sentence in sentences(page)]
    return [Text(each + "\n", _OTHER_TOKENS) for each in random.Random(_SEED).sample(found, min(count, len(found)))]


def sentences(page: Path) -> Iterator[str]:
    """The sentences of a page's paragraphs and lists, 40 to 300 characters long; no headings, tables or code."""
    for paragraph in re.split(r"\n{2,}", _without_code(page.read_text(encoding="utf-8").splitlines())):
        if paragraph[:1].isalpha():
            for sentence in re.split(r"(?<=[.:;?!])\s+", " ".join(paragraph.split())):
                if 40 <= len(sentence) <= 300 and "|" not in sentence:
                    yield sentence


def _without_code(lines: Sequence[str]) -> str:
    """The lines joined; a list's item is a paragraph of its own."""
    kept, inside = list[str](), False
    for line in lines:
        fence = line.lstrip().startswith("```")
        inside ^= fence
        kept.append("" if inside or fence else re.sub(r"^\s*([-*]|\d+\.)\s+", "\n", line))
    return "\n".join(kept)


def _code(count: int) -> list[Text]:
    """Openings of this project's own source: a small part of what the edge was calibrated on."""
    found = [prompt.prompt for prompt in read_heldout(starter() / "heldout.jsonl") if prompt.kind == "code"]
    return [Text(each, _OTHER_TOKENS) for each in found[:count]]

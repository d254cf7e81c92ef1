"""The homes and workshops that the commands speak of: kinds of devices, what can be set on them, where they stand."""

import random
from dataclasses import dataclass

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that can be set: its name in the JSON, its spoken units, and its range in whole steps."""

    name: str
    units: tuple[str, ...]
    low: int
    high: int
    step: int
    up: str
    down: str

    def draw(self, rng: random.Random) -> int:
        """A value of the range; three of four are round."""
        if rng.random() < 0.75:
            return rng.randrange(self.low, self.high + 1, self.step)
        return rng.randrange(self.low, self.high + 1, max(1, self.step // 5))

    def clip(self, value: int) -> int:
        """The nearest value of the range."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device: the first noun is the plain one, the others are synonyms."""

    name: str
    nouns: tuple[str, ...]
    quantity: Quantity | None
    switches: bool
    verbs: tuple[str, ...]
    colours: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A room or a bay: its id in the JSON, and how it is spoken with and without an article."""

    name: str
    spoken: str
    full: str


@dataclass(frozen=True, slots=True)
class Sensor:
    """A reading that a condition asks about; `frames` say (words, operator, needs a number)."""

    name: str
    frames: tuple[tuple[str, str], ...]
    low: int
    high: int


_PERCENT = (" %", "%", " percent")
_DEGREES = (" degrees", " °C", " degrees celsius")


def _percent(name: str, up: str, down: str) -> Quantity:
    return Quantity(name, _PERCENT, 0, 100, 5, up, down)


HOME = (
    Kind(
        "light",
        ("light", "lights", "lamp", "lamps"),
        _percent("brightness", "brighter", "dimmer"),
        True,
        ("dim {d} to {v}", "brighten {d} to {v}"),
        colours=True,
    ),
    Kind(
        "blind",
        ("blinds", "blind", "shades", "shutters"),
        _percent("position", "higher", "lower"),
        False,
        ("open {d} to {v}", "lower {d} to {v}", "raise {d} to {v}"),
    ),
    Kind(
        "heating",
        ("heating", "radiator", "heater"),
        Quantity("temperature", _DEGREES, 5, 28, 1, "warmer", "colder"),
        True,
        ("heat {d} to {v}", "turn {d} up to {v}", "turn {d} down to {v}"),
    ),
    Kind(
        "fan", ("fan", "ventilator"), _percent("speed", "faster", "slower"), True, ("run {d} at {v}", "spin {d} at {v}")
    ),
    Kind(
        "speaker",
        ("speaker", "speakers", "stereo"),
        _percent("volume", "louder", "quieter"),
        True,
        ("turn {d} up to {v}", "turn {d} down to {v}"),
    ),
    Kind("socket", ("socket", "plug", "outlet"), None, True, ()),
    Kind("humidifier", ("humidifier", "mister"), _percent("humidity", "wetter", "drier"), True, ("run {d} at {v}",)),
    Kind("lock", ("door", "lock"), None, False, ()),
)
WORKSHOP = (
    Kind("drill", ("drill", "drill press"), Quantity("rpm", (" rpm",), 200, 3000, 100, "faster", "slower"), True,
         ("run {d} at {v}", "spin {d} at {v}")),
    Kind("lathe", ("lathe", "turning machine"), Quantity("rpm", (" rpm",), 100, 2500, 50, "faster", "slower"), True,
         ("run {d} at {v}", "spin {d} at {v}")),
    Kind("saw", ("saw", "band saw"), None, True, ()),
    Kind("compressor", ("compressor", "air compressor"), Quantity("pressure", (" bar",), 1, 12, 1, "higher", "lower"),
         True, ("pump {d} up to {v}", "run {d} at {v}")),
    Kind("extractor", ("extractor", "dust extractor", "hood"), _percent("suction", "stronger", "weaker"), True,
         ("run {d} at {v}",)),
    Kind("kiln", ("kiln", "oven", "furnace"), Quantity("temperature", _DEGREES, 100, 1200, 50, "hotter", "cooler"),
         True, ("heat {d} to {v}", "fire {d} to {v}")),
    Kind("laser", ("laser", "laser cutter"), _percent("power", "stronger", "weaker"), True, ("run {d} at {v}",)),
    Kind("pump", ("pump", "coolant pump"),
         Quantity("flow", (" litres", " liters per minute"), 1, 60, 5, "faster", "slower"), True, ("run {d} at {v}",)),
    Kind("conveyor", ("conveyor", "belt", "conveyor belt"),
         Quantity("speed", (" mm/s", " millimetres per second"), 50, 900, 50, "faster", "slower"), True,
         ("run {d} at {v}",)),
)  # fmt: skip

COLOURS = ("red", "green", "blue", "white", "amber", "purple", "pink", "orange")


def _rooms() -> tuple[Place, ...]:
    spoken = (
        "kitchen", "bedroom", "bathroom", "hallway", "garage", "office", "attic", "cellar", "nursery", "living room",
        "dining room", "guest room", "study", "porch", "laundry", "balcony", "pantry", "library", "playroom", "sauna",
        "conservatory", "staircase", "gym", "den",
    )  # fmt: skip
    return tuple(Place(room.replace(" ", "_"), room, f"the {room}") for room in spoken)


def _stations() -> tuple[Place, ...]:
    spoken = [f"{word} {number}" for word in ("bay", "line", "cell", "hall") for number in range(1, 8)]
    return tuple(Place(station.replace(" ", "_"), station, station) for station in spoken)


ROOMS, STATIONS = _rooms(), _stations()

SENSORS = (
    Sensor("temperature", (("is warmer than {} degrees", "above"), ("is colder than {} degrees", "below"),
                           ("gets hotter than {} degrees", "above"), ("drops below {} degrees", "below")), 5, 35),
    Sensor("humidity", (("is more humid than {} %", "above"), ("is drier than {} %", "below"),
                        ("has more than {} percent humidity", "above")), 20, 90),
    Sensor("presence", (("is empty", "false"), ("is occupied", "true"), ("has nobody in it", "false"),
                        ("has someone in it", "true")), 0, 0),
)  # fmt: skip


def sites() -> tuple[tuple[tuple[Kind, ...], tuple[Place, ...]], ...]:
    """Which kinds stand in which places."""
    return ((HOME, ROOMS), (WORKSHOP, STATIONS))

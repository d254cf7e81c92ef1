"""The edge directory: what onnxruntime runs, its tokenizer, `edge.json`, which says what it is, and, once it was
calibrated, `calibration.json`, which says how far to trust it.

One graph (`edge.onnx`), or with an inner exit two segments: `shallow.onnx` (embedding, the lower layers, the exit) and
`deep.onnx` (the other layers, the head).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from ..common.errors import ModelDirError
from ..common.model_dir import file_digest, model_digest, read_json
from ..common.types import Digests
from .calibration import Calibration
from .calibration_file import read_calibration

FORMAT = 2
_READABLE = frozenset({1, FORMAT})
"""A directory of format 1 is one of format 2 without an inner exit."""
_EXPORT_HINT = "make it with `tiermesh export HF_DIR OUT`"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shapes of the graph."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_length: int
    """Positions of the KV cache: prompt and answer together, in tokens."""
    rope_theta: float

    @property
    def kv_bytes(self) -> int:
        """Bytes of one sequence's KV cache, float32."""
        return 2 * self.layers * self.kv_heads * self.max_length * self.head_dim * 4


@dataclass(frozen=True, slots=True)
class ExitPoint:
    """What drafting from one probability on gave on held-out text. Shares, 0 to 1."""

    min_probability: float
    """Of the inner exit's first choice."""
    drafted: float
    """Share of tokens that the inner exit is that sure of."""
    acceptance: float
    """Share of those that are the full depth's own."""


@dataclass(frozen=True, slots=True)
class InnerExit:
    """Where the model is cut, and how well the shallow segment foretells the deep one."""

    layers: int
    """Of the shallow segment."""
    curve: tuple[ExitPoint, ...]
    """From loose to strict; which point pays depends on what the segments cost on the node's own machine."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A checked edge directory."""

    directory: Path
    architecture: Architecture
    bits: int
    """Of the weights."""
    eos_ids: tuple[int, ...]
    digests: Digests
    calibration: Calibration | None
    """What its trust was measured to be; None where nothing was: every bounded unit asks."""
    inner_exit: InnerExit | None = None

    @property
    def graphs(self) -> tuple[Path, ...]:
        """The ONNX file, or those of the shallow and the deep segment."""
        return tuple(self.directory / name for name in graph_names(split=self.inner_exit is not None))


def graph_names(*, split: bool) -> tuple[str, ...]:
    """The ONNX files of an edge directory, in the order in which they run."""
    return ("shallow.onnx", "deep.onnx") if split else ("edge.onnx",)


def read_artifact(directory: Path) -> Artifact:
    """Reads and checks an edge directory. Raises ModelDirError that says what is missing or wrong."""
    _require(directory, "edge.json", "tokenizer.json")
    facts = read_json(directory / "edge.json")
    if facts.get("format") not in _READABLE:
        raise ModelDirError(
            f"{directory}/edge.json has format {facts.get('format')!r}, this version reads {FORMAT}; {_EXPORT_HINT}"
        )
    try:
        artifact = _parse(directory, facts, read_calibration(directory))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ModelDirError(f"{directory}/edge.json is broken ({exc!r}); {_EXPORT_HINT}") from exc
    _require(directory, *(graph.name for graph in artifact.graphs))
    _check_digest(", ".join(map(str, artifact.graphs)), model_digest(directory), artifact.digests.model)
    tokenizer = directory / "tokenizer.json"
    _check_digest(str(tokenizer), file_digest(tokenizer), artifact.digests.tokenizer)
    return artifact


def _require(directory: Path, *names: str) -> None:
    for name in names:
        if not (directory / name).is_file():
            raise ModelDirError(f"{directory} is no edge directory: it has no {name}; {_EXPORT_HINT}")


def _parse(directory: Path, facts: Mapping[str, Any], calibration: Calibration | None) -> Artifact:
    shapes = facts["architecture"]
    counts = {name: _count(shapes, name) for name in _COUNTS}
    architecture = Architecture(**counts, rope_theta=float(shapes["rope_theta"]))
    eos_ids = tuple(int(i) for i in facts["eos_ids"])
    if any(not 0 <= i < architecture.vocab for i in eos_ids):
        raise ValueError(f"eos_ids {eos_ids} outside the vocabulary")
    digests = facts["digests"]
    return Artifact(
        directory=directory,
        architecture=architecture,
        bits=int(facts["bits"]),
        eos_ids=eos_ids,
        digests=Digests(str(digests["model"]), str(digests["tokenizer"]), str(digests["template"])),
        calibration=calibration,
        inner_exit=_inner_exit(facts["inner_exit"], architecture.layers) if "inner_exit" in facts else None,
    )


def _inner_exit(facts: Mapping[str, Any], layers: int) -> InnerExit:
    curve = tuple(ExitPoint(*(float(point[f.name]) for f in fields(ExitPoint))) for point in facts["curve"])
    inner = InnerExit(_count(facts, "layers"), curve)
    if inner.layers >= layers:
        raise ValueError(f"inner_exit.layers is {inner.layers} of {layers}")
    if not curve or any(not 0 <= share <= 1 for point in curve for share in astuple(point)):
        raise ValueError(f"inner_exit.curve is {facts['curve']!r}")
    return inner


_COUNTS = tuple(f.name for f in fields(Architecture) if f.name != "rope_theta")


def _count(shapes: Mapping[str, Any], name: str) -> int:
    value = shapes[name]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}")
    return value


def _check_digest(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelDirError(
            f"{what}: not the file that edge.json was made for (digest {found[:12]}, expected {expected[:12]}); "
            f"{_EXPORT_HINT}"
        )

"""The edge directory: a graph that onnxruntime runs, its tokenizer, `edge.json`, which says what the graph is, and,
once it was calibrated, `calibration.json`, which says how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..common.errors import ModelDirError
from ..common.model_dir import file_digest, read_json
from ..common.types import Digests
from .calibration import Calibration
from .calibration_file import read_calibration

FORMAT = 1
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

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.directory / "edge.onnx"


def read_artifact(directory: Path) -> Artifact:
    """Reads and checks an edge directory. Raises ModelDirError that says what is missing or wrong."""
    for name in ("edge.json", "edge.onnx", "tokenizer.json"):
        if not (directory / name).is_file():
            raise ModelDirError(f"{directory} is no edge directory: it has no {name}; {_EXPORT_HINT}")
    facts = read_json(directory / "edge.json")
    if facts.get("format") != FORMAT:
        raise ModelDirError(
            f"{directory}/edge.json has format {facts.get('format')!r}, this version reads {FORMAT}; {_EXPORT_HINT}"
        )
    try:
        artifact = _parse(directory, facts, read_calibration(directory))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ModelDirError(f"{directory}/edge.json is broken ({exc!r}); {_EXPORT_HINT}") from exc
    _check_digest(artifact.graph, artifact.digests.model)
    _check_digest(directory / "tokenizer.json", artifact.digests.tokenizer)
    return artifact


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
    )


_COUNTS = tuple(f.name for f in fields(Architecture) if f.name != "rope_theta")


def _count(shapes: Mapping[str, Any], name: str) -> int:
    value = shapes[name]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"architecture.{name} is {value!r}")
    return value


def _check_digest(path: Path, expected: str) -> None:
    found = file_digest(path)
    if found != expected:
        raise ModelDirError(
            f"{path} is not the file that edge.json was made for (digest {found[:12]}, expected {expected[:12]}); "
            f"{_EXPORT_HINT}"
        )

"""`calibration.json` beside `edge.json`: written atomically, checked when read, without a date."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..common.errors import ModelDirError
from ..common.types import Digests
from .calibration import Calibration, ClassCalibration, SamplingClass, ScoreMap
from .features import FEATURES
from .risk import Step

FILE = "calibration.json"
FORMAT = 1
_HINT = "make it anew with `tiermesh calibrate`"


def read_calibration(directory: Path) -> Calibration | None:
    """The calibration of an edge directory, None when it has none. Raises ModelDirError for a broken file."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        raw = path.read_bytes()
        facts = json.loads(raw)
        if facts["format"] != FORMAT or facts["features"] != list(FEATURES):
            raise ModelDirError(f"{path} was written by another version; {_HINT}")
        return _parse(facts, hashlib.sha256(raw).hexdigest())
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ModelDirError(f"{path} is broken ({exc!r}); {_HINT}") from exc


def write_calibration(directory: Path, calibration: Calibration) -> Path:
    """Puts a calibration into an edge directory: the old one or the new one is there at any time."""
    path = directory / FILE
    new = path.with_name(f".{FILE}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(calibration_text(calibration))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as exc:
        new.unlink(missing_ok=True)
        raise ModelDirError(f"{path} can't be written: {exc.strerror}") from exc
    return path


def calibration_text(calibration: Calibration) -> str:
    """The file's text; the same calibration gives the same bytes."""
    facts: dict[str, Any] = {"format": FORMAT, "features": list(FEATURES)}
    facts |= {name: value for name, value in asdict(calibration).items() if name not in ("classes", "digest")}
    lines = ",\n    ".join(json.dumps(_class_facts(found)) for found in calibration.classes)
    head = json.dumps(facts, indent=2).removesuffix("\n}")
    return f'{head},\n  "classes": [\n    {lines}\n  ]\n}}\n'


def _class_facts(found: ClassCalibration) -> dict[str, Any]:
    facts = asdict(found)
    del facts["_found"]
    return facts | {"walk": [[s.threshold, s.reach, s.prompts, s.wrong] for s in found.walk]}


def _parse(facts: Mapping[str, Any], digest: str) -> Calibration:
    calibration = Calibration(
        edge=Digests(**facts["edge"]),
        cloud_model=str(facts["cloud_model"]),
        epsilon=_number(facts["epsilon"], 0.0, 1.0),
        prompts=int(facts["prompts"]),
        prompts_sha256=str(facts["prompts_sha256"]),
        max_tokens=int(facts["max_tokens"]),
        classes=tuple(_parse_class(each) for each in facts["classes"]),
        digest=digest,
    )
    if not 0.0 < calibration.epsilon < 1.0:
        raise ValueError(f"epsilon {calibration.epsilon}")
    return calibration


def _parse_class(facts: Mapping[str, Any]) -> ClassCalibration:
    knots = tuple((_number(x), _number(y, 0.0, 1.0)) for x, y in facts["map"]["knots"])
    if any(not (x0 < x1 and y0 <= y1) for (x0, y0), (x1, y1) in pairwise(knots)):
        raise ValueError("knots must ascend")
    weights = tuple(_number(weight) for weight in facts["map"]["weights"])
    if len(weights) != len(FEATURES):
        raise ValueError(f"{len(weights)} weights for {len(FEATURES)} features")
    walk = tuple(Step(_number(t, 0.0, 1.0), _number(r, 0.0, 1.0), int(n), int(w)) for t, r, n, w in facts["walk"])
    if any(not 0 <= step.wrong <= step.prompts for step in walk):
        raise ValueError("a step counts more wrong units than prompts")
    if any(strict.threshold < loose.threshold for strict, loose in pairwise(walk)):
        raise ValueError("the walk must go from strict to loose")
    return ClassCalibration(
        sampling=SamplingClass(**facts["sampling"]),
        map=ScoreMap(_number(facts["map"]["intercept"]), weights, knots),
        walk=walk,
        fitted=int(facts["fitted"]),
        tested=int(facts["tested"]),
        log_loss=_number(facts["log_loss"]),
        ece=_number(facts["ece"]),
    )


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{value!r} is not a number from {low:g} to {high:g}")
    return number

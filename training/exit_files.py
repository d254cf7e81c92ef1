"""An inner exit beside the weights of a Hugging Face directory: `inner_exit.safetensors`, and `inner_exit.json`.

Tensors, all named `inner_exit.…`: `norm.weight` [hidden], `down.weight` [rank, hidden], `up.weight` [hidden, rank],
`final.weight` [hidden], `other.weight` [hidden] float, `shortlist` [N] int64. The exit's logits after hidden states h
are `rows · final(h + up · silu(down · norm(h)))`; its rows are the head's for the ids of the shortlist, and `other`,
which stands for all ids that are not on it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..edge.artifact import ExitPoint

FACTS = "inner_exit.json"
_WEIGHTS = "inner_exit.safetensors"
_PREFIX = "inner_exit."


def write_exit(directory: Path, tensors: Mapping[str, np.ndarray], layers: int, curve: Sequence[ExitPoint]) -> None:
    """Put an exit after `layers` layers, with what it was measured to do, into `directory`."""
    named = {_PREFIX + name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(named, directory / _WEIGHTS)
    (directory / _WEIGHTS).chmod(0o644)  # written for its owner alone, while services run as another user
    facts = {"layers": layers, "curve": [asdict(point) for point in curve]}
    (directory / FACTS).write_text(json.dumps(facts, indent=2) + "\n")

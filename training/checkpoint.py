"""What a run needs to go on where it stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_checkpoint(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int, seen: int
) -> None:
    """Replace `path` in one go, so that a kill in the middle leaves the old one whole."""
    state: dict[str, Any] = {"model": model.state_dict(), "step": step, "seen": seen}
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    new = path.with_suffix(".new")
    torch.save(state, new)
    new.replace(path)


def load_checkpoint(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = ()) -> tuple[int, int]:
    """Load what `path` holds, if it exists; returns the steps and tokens done. Without optimizers, the model alone."""
    if not path.exists():
        return 0, 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=False):
        optimizer.load_state_dict(kept)
    return int(state["step"]), int(state["seen"])

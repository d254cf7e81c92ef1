"""Residual addition and RMSNorm.

    total = residual + rows          out = total / √(mean(total²) + ε) · weight

over the last dimension (Zhang & Sennrich 2019, eq. 4). Shapes: rows, residual, total, out [rows, width]; weight
[width].
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """By torch: (total, out); without a residual, total is `rows` itself."""
    total = rows if residual is None else residual + rows
    return total, normalize(total, weight, epsilon)


def normalize(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm alone, over the last dimension of any shape.

    In float32 on a CPU the mean square is a product by a constant column: with that a norm takes 7.5 µs instead of the
    14 µs of `F.rms_norm` (1 row of 384), which torch runs there as seven operations, and a pass has 17 or more.
    """
    if rows.dtype is not torch.float32 or rows.device.type != "cpu" or rows.ndim != 2:
        return F.rms_norm(rows, (rows.shape[-1],), weight, epsilon)
    shares, constant = _mean(rows.shape[1], epsilon)
    return (rows * torch.addmm(constant, rows * rows, shares).rsqrt_()).mul_(weight)


@lru_cache(maxsize=16)
def _mean(width: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """The column by which squares give their mean, and ε to add."""
    return torch.full((width, 1), 1 / width), torch.full((1, 1), epsilon)

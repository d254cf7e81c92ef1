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

    In float32 on a CPU it goes by the length of each row: so a norm takes 6 µs, not the 9 µs of `F.rms_norm` (1 row
    of 384), which torch runs there as seven operations, and a pass has 17 or more. A product with a constant column is
    as fast, but gives a row other bits when others are beside it.
    """
    if rows.dtype is not torch.float32 or rows.device.type != "cpu" or rows.ndim != 2:
        return F.rms_norm(rows, (rows.shape[-1],), weight, epsilon)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return (rows * torch.addcmul(_constant(epsilon), length, length, value=1 / rows.shape[1]).rsqrt_()).mul_(weight)


@lru_cache(maxsize=16)
def _constant(value: float) -> Tensor:
    return torch.full((1, 1), value)

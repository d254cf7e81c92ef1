"""Residual addition and RMSNorm in Triton; see `rms_norm.py` for what they compute. A program keeps one row on chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(total, out), each [rows, width]; without a residual, total is `rows` itself."""
    count, width = rows.shape
    out = torch.empty(count, width, device=rows.device, dtype=rows.dtype)
    total = rows if residual is None else torch.empty_like(out)
    if count:
        tile = triton.next_power_of_2(width)
        _kernel[(count,)](
            rows,
            rows if residual is None else residual,
            weight,
            total,
            out,
            rows.stride(0),
            0 if residual is None else residual.stride(0),
            width,
            epsilon,
            ADD=residual is not None,
            TILE=tile,
            num_warps=min(16, max(1, tile // 512)),
        )
    return total, out


@triton.jit
def _kernel(
    rows, residual, weight, total, out, stride, residual_stride, width, epsilon, ADD: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)
    inside = column < width
    x = tl.load(rows + row * stride + column, mask=inside, other=0.0)
    if ADD:
        before = tl.load(residual + row * residual_stride + column, mask=inside, other=0.0)
        # Rounded as it is stored: the norm is that of the sum which the next layer will read.
        x = (x.to(tl.float32) + before.to(tl.float32)).to(x.dtype)
        tl.store(total + row * width + column, x, mask=inside)
    x = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / width + epsilon)
    normed = x * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask=inside)

"""SwiGLU in Triton; see `swiglu.py` for what it computes. One pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024


def swiglu(gate_up: Tensor, tile: int = _TILE) -> Tensor:
    """silu(gate) · up of `gate_up` [rows, 2 × width]; `tile` columns per program, a power of two."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, device=gate_up.device, dtype=gate_up.dtype)
    if rows:
        _kernel[(rows, triton.cdiv(width, tile))](gate_up, out, gate_up.stride(0), width, TILE=tile)
    return out


@triton.jit
def _kernel(gate_up, out, stride, width, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < width
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + column, mask=inside, other=0.0).to(tl.float32)
    # exp of nothing positive: it can't overflow.
    small = tl.exp(-tl.abs(gate))
    product = gate * tl.where(gate < 0, small, 1.0) / (1.0 + small) * up
    tl.store(out + row * width + column, product.to(out.dtype.element_ty), mask=inside)

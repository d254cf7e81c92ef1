"""SwiGLU: out = silu(gate) · up, silu(x) = x / (1 + exp(−x)) (Shazeer 2020, eq. 6).

Shapes: gate_up [rows, 2 × width], the gate first; out [rows, width].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """By torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)

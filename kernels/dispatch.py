"""Which implementation of each operation a device runs; picked once, when a model is put together."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..common.telemetry import get_logger
from . import attention, rms_norm, rope_kv_write, swiglu
from .paged import Group


class RmsNorm(Protocol):
    """See `rms_norm.py`."""

    def __call__(
        self, rows: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


class RopeKvWrite(Protocol):
    """See `rope_kv_write.py`."""

    def __call__(
        self,
        qkv: Tensor,
        turn: Tensor,
        slots: Tensor,
        kv: Tensor,
        norms: rope_kv_write.Norms | None = None,
        epsilon: float = 0.0,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations of a forward pass besides matrix products."""

    rms_norm: RmsNorm
    rope_kv_write: RopeKvWrite
    attention: Callable[[Tensor, Tensor, Sequence[Group], int | None], Tensor]
    """See `attention.py`."""
    swiglu: Callable[[Tensor], Tensor]
    """See `swiglu.py`."""
    recordable: bool = False
    """Whether what is launched hangs on shapes alone, so that a CUDA graph can hold it."""


REFERENCE = Ops(rms_norm.rms_norm, rope_kv_write.rope_kv_write, attention.attention, swiglu.swiglu)
"""By torch, on any device."""


def triton_ops() -> Ops:
    """By Triton, which is imported here and nowhere else: a worker on a CPU needs none. ImportError without it."""
    from . import attention_decode_triton, rms_norm_triton, rope_kv_write_triton, swiglu_triton

    return Ops(
        rms_norm_triton.rms_norm,
        rope_kv_write_triton.rope_kv_write,
        attention_decode_triton.attention,
        swiglu_triton.swiglu,
        recordable=True,
    )


def ops_for(device: torch.device) -> Ops:
    """Triton on a GPU, the references elsewhere, and on a GPU whose system has no Triton."""
    if device.type != "cuda":
        return REFERENCE
    if importlib.util.find_spec("triton") is None:
        get_logger().warning("triton is not installed; the model runs on torch's own kernels, which are slower")
        return REFERENCE
    return triton_ops()

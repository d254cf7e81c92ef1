"""Matrix products with weights in the layout that the device multiplies fastest.

A decode step reads every weight once, so their bytes bound it. Checkpoints hold 16 bits each, and FBGEMM multiplies
weights of 16 bits by rows of float32 in float32. All products of a pass of the starter, milliseconds on two cores (AMD
EPYC, AVX-512; 35 GB/s of memory):

    rows                     1     2     4     8    16    64   128   512
    FBGEMM, 28 MB          0.9   1.1   1.2   1.8   3.0   9.7    19    72
    oneDNN packed, 57 MB   2.8   2.4   1.9   2.9   3.3   9.9    19    70
    torch.mm, 57 MB        3.7   5.3   6.8         7.7

By the first two a row's result is the same to the bit whatever rows are beside it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

_ops: Any = torch.ops
_CHECKED = 1 << 16
"""Elements at once: what the check of a large matrix takes must not leave holes between packed ones."""
_ROUNDING = 2.0**-24
"""The unit roundoff of float32."""
_ROWS_HINT = 16
"""For how many rows oneDNN shall choose the layout: the same one from 4 to 256 (and a slower one for a single row)."""


class Linear(Protocol):
    """A weight with its bias, if it has one."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """inputs [rows, in] · weight + bias: [rows, out]."""
        ...


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Takes a weight [out, in] as files have it."""
    if _multiplies_half(weight) and is_half(weight):
        return HalfLinear(weight, bias)
    return PackedLinear(weight, bias) if _packs(weight) else PlainLinear(weight, bias)


def linear_to_float32(weight: Tensor) -> Linear:
    """Takes a weight [out, in] whose products are to be float32, whatever its type."""
    if weight.device.type == "cuda" and weight.element_size() == 2:
        return WideningLinear(weight)
    return linear(weight.to(torch.float32))


def is_half(weight: Tensor) -> bool:
    """Whether float16 holds a float32 weight [out, in] as well as float32 can multiply by it.

    No row may move, in norm, by more than a float32 sum of as many terms is expected to be off: √in units of roundoff
    (Higham & Mary 2019). So it is for what was stored as float16, and as bfloat16 where few elements are below 8e-6.
    """
    parts = weight.split(max(1, _CHECKED // weight.shape[1]))
    most = _ROUNDING * weight.shape[1] ** 0.5
    return all(bool((_error(part) <= most * part.norm(dim=1)).all()) for part in parts)


def _error(rows: Tensor) -> Tensor:
    error: Tensor = (rows - rows.to(torch.float16)).norm(dim=1)
    return error


def _multiplies_half(weight: Tensor) -> bool:
    """Whether FBGEMM is there; its operators have no public name."""
    if weight.device.type != "cpu" or weight.dtype is not torch.float32:
        return False
    return torch.backends.quantized.engine in ("x86", "fbgemm") and hasattr(_ops.quantized, "linear_prepack_fp16")


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN is there and has products of this type; its operators have no public name yet."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(_ops.mkldnn, "_linear_pointwise") or not hasattr(_ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype is torch.bfloat16:
        return bool(_ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32


class HalfLinear:
    """By FBGEMM, on a CPU: float16 weights, all arithmetic in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        with torch.inference_mode():
            self._packed = _ops.quantized.linear_prepack_fp16(weight, bias)

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `Linear`."""
        product: Tensor = _ops.quantized.linear_dynamic_fp16(inputs, self._packed)
        return product


class PackedLinear:
    """By oneDNN, on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        with torch.inference_mode():
            self._weight = _ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
        self._bias = bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `Linear`."""
        product: Tensor = _ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return product

    def add_to(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """rows [rows, out] + inputs · weight + bias; the product adds on its way out."""
        total: Tensor = _ops.mkldnn._linear_pointwise.binary(inputs, rows, self._weight, self._bias, "add")
        return total


class PlainLinear:
    """By `torch.mm`, anywhere."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = transposed(weight), bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `Linear`."""
        return torch.mm(inputs, self._weight) if self._bias is None else torch.addmm(self._bias, inputs, self._weight)


class WideningLinear:
    """By cuBLAS, on a GPU: factors of 16 bits, sums and results in float32.

    128,256 × 4096 take 0.26 ms at one row on an H200 and 0.30 at 64; in float32 0.51 and 1.39.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.t()

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `Linear`."""
        return torch.mm(inputs.to(self._weight.dtype), self._weight, out_dtype=torch.float32)


def transposed(matrix: Tensor) -> Tensor:
    """[out, in] of the files as [in, out], rows apart by no multiple of 4 KiB.

    At hidden 384 this takes a core (Xeon, 2.5 GHz, float32) 0.4 to 0.9 of the time of [out, in] at 1 to 128 rows. With
    rows 8 KiB apart they fall on the same cache lines, and 128 rows × 2048 columns take twice as long as padded ones.
    """
    columns = matrix.shape[0]
    padding = 64 // matrix.element_size() if columns * matrix.element_size() % 4096 == 0 else 0
    rows = matrix.new_zeros(matrix.shape[1], columns + padding)
    rows[:, :columns] = matrix.t()
    return rows[:, :columns]

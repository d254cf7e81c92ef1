"""Matrix products with weights in the layout that the device multiplies fastest.

On a CPU oneDNN packs the weights once. For the starter's shape on one core (AMD EPYC, AVX-512, float32) all products of
a pass of 1, 4, 16, 128 and 512 rows took 1.7, 2.0, 3.3, 15 and 59 ms; by `torch.mm` 2.1, 4.6, 7.6, 36 and 137. There a
row's result was also the same to the bit whatever rows were beside it, which `torch.mm` didn't keep below 4 rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

_ops: Any = torch.ops
_ROWS_HINT = 16
"""For how many rows oneDNN shall choose the layout: the same one from 4 to 256 (and a slower one for a single row)."""


class Linear(Protocol):
    """A weight with its bias, if it has one."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """inputs [rows, in] · weight + bias: [rows, out]."""
        ...


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Takes a weight [out, in] as files have it."""
    return PackedLinear(weight, bias) if _packs(weight) else PlainLinear(weight, bias)


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN is there and has products of this type; its operators have no public name yet."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(_ops.mkldnn, "_linear_pointwise") or not hasattr(_ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype is torch.bfloat16:
        return bool(_ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32


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

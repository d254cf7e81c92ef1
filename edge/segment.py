"""One graph bound to the KV cache of one sequence: all that it reads and writes stays where it is from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .artifact import Architecture

Arrays = Mapping[str, npt.NDArray[Any]]


class Segment:
    """Runs consecutive layers of one sequence; their keys and values are written in place."""

    def __init__(self, session: ort.InferenceSession, layers: range, shapes: Architecture) -> None:
        self._session = session
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        kv_shape = (1, shapes.kv_heads, shapes.max_length, shapes.head_dim)
        self._inputs = {"seqlens_k": _value(self._last), "total_length": _value(self._total)}
        self._outputs: dict[str, ort.OrtValue] = {}
        for layer in layers:
            for kind in ("key", "value"):
                shared = _value(np.zeros(kv_shape, np.float32))
                self._inputs[f"past_{kind}.{layer}"] = self._outputs[f"present_{kind}.{layer}"] = shared

    def bind(self, inputs: Arrays, outputs: Arrays) -> Any:
        """A binding to the arrays' own memory, for `run`. The caller keeps the arrays alive."""
        binding = self._session.io_binding()
        for name, value in {**self._inputs, **_values(inputs)}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in {**self._outputs, **_values(outputs)}.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def run(self, binding: Any, total: int) -> None:
        """Runs what the binding reads as the last of `total` positions; what the cache holds behind them is void."""
        self._last[0] = total - 1
        self._total[...] = total
        self._session.run_with_iobinding(binding)


def _values(arrays: Arrays) -> dict[str, ort.OrtValue]:
    return {name: _value(array) for name, array in arrays.items()}


def _value(array: npt.NDArray[Any]) -> ort.OrtValue:
    """A runtime value over the array's own memory (onnxruntime copies nothing on the CPU)."""
    return ort.OrtValue.ortvalue_from_numpy(array)

"""The edge model on onnxruntime: one graph, several sequences, each with a KV cache of its own.

A step costs the graph and little else: inputs, outputs and KV of a sequence are bound once to memory that is written
in place, so that a token needs no allocation and no copy. Rolling back moves no memory: the length goes down, and what
lies behind it is overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..common.errors import ModelDirError
from .artifact import Artifact

_CACHED_LENGTHS = 4
"""Inputs up to this length keep their binding: 1 for decoding, 2 after a verdict (last draft and correction)."""


class EdgeModel:
    """The loaded graph; `sequence()` gives a KV cache to run it on."""

    def __init__(self, session: ort.InferenceSession, artifact: Artifact) -> None:
        self.session = session
        self.artifact = artifact

    @classmethod
    def load(cls, artifact: Artifact, threads: int = 1) -> EdgeModel:
        """Loads the graph to run on `threads` cores. Raises ModelDirError when onnxruntime refuses it."""
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take the cores that the other processes of a small box need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(str(artifact.graph), options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise ModelDirError(f"onnxruntime can't load {artifact.graph}: {exc}") from exc
        _check_interface(session, artifact)
        return cls(session, artifact)

    def sequence(self) -> SequenceState:
        """An empty sequence with its own KV cache."""
        return SequenceState(self)


@dataclass(slots=True)
class _Bound:
    """A binding for inputs of one length."""

    binding: Any
    ids: npt.NDArray[np.int64]
    """[1, S], written in place before each run."""


class SequenceState:
    """The ids that one KV cache holds, and the outputs after the last of them. For one thread at a time."""

    def __init__(self, model: EdgeModel) -> None:
        shapes = model.artifact.architecture
        self.max_length = shapes.max_length
        self.ids: list[int] = []
        """What the KV cache holds."""
        self.logits = np.zeros((1, 1, shapes.vocab), np.float32)
        self.token = np.zeros(1, np.int64)
        self.features = np.zeros((1, 3), np.float32)
        """Max probability, top-2 margin, entropy in nats; of the unscaled softmax."""
        self._session = model.session
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        kv_shape = (1, shapes.kv_heads, shapes.max_length, shapes.head_dim)
        self._inputs = {"seqlens_k": _value(self._last), "total_length": _value(self._total)}
        self._outputs = {
            "logits": _value(self.logits),
            "token": _value(self.token),
            "features": _value(self.features),
        }
        for layer in range(shapes.layers):
            for kind in ("key", "value"):
                shared = _value(np.zeros(kv_shape, np.float32))
                self._inputs[f"past_{kind}.{layer}"] = self._outputs[f"present_{kind}.{layer}"] = shared
        self._bound: dict[int, _Bound] = {}

    def reset(self) -> None:
        """Forgets the sequence."""
        self.ids.clear()

    def catch_up(self, known: Sequence[int]) -> None:
        """Makes the KV cache hold exactly `known` and the outputs those after its last id; runs only what is new.

        What the cache holds beyond the common prefix is rolled back. Raises ValueError when `known` is empty or longer
        than `max_length`.
        """
        if not 0 < len(known) <= self.max_length:
            raise ValueError(f"a sequence has 1 to {self.max_length} ids, not {len(known)}")
        # The outputs belong to the last id, so that one runs again even when the cache holds it.
        keep = min(_common(self.ids, known), len(known) - 1)
        del self.ids[keep:]
        self._run(known[keep:])

    def step(self, token_id: int) -> None:
        """Appends one id and runs it."""
        if len(self.ids) >= self.max_length:
            raise ValueError(f"the sequence is full: {self.max_length} ids")
        self._run((token_id,))

    def _run(self, new: Sequence[int]) -> None:
        bound = self._bound.get(len(new)) or self._bind(len(new))
        bound.ids[0] = new
        total = len(self.ids) + len(new)
        self._last[0] = total - 1
        self._total[...] = total
        self._session.run_with_iobinding(bound.binding)
        self.ids.extend(new)

    def _bind(self, length: int) -> _Bound:
        ids = np.zeros((1, length), np.int64)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("input_ids", _value(ids))
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        bound = _Bound(binding, ids)
        if length <= _CACHED_LENGTHS:
            self._bound[length] = bound
        return bound


def _value(array: npt.NDArray[Any]) -> ort.OrtValue:
    """A runtime value over the array's own memory (onnxruntime copies nothing on the CPU)."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def _common(held: list[int], known: Sequence[int]) -> int:
    """Length of the common prefix."""
    shared = min(len(held), len(known))
    if held[:shared] == list(known[:shared]):
        return shared
    return next(i for i in range(shared) if held[i] != known[i])


def _check_interface(session: ort.InferenceSession, artifact: Artifact) -> None:
    names = {value.name for value in session.get_inputs()} | {value.name for value in session.get_outputs()}
    layers = range(artifact.architecture.layers)
    wanted = {"input_ids", "seqlens_k", "total_length", "logits", "token", "features"}
    wanted |= {f"{side}_{kind}.{i}" for side in ("past", "present") for kind in ("key", "value") for i in layers}
    if wanted != names:
        odd = ", ".join(sorted(wanted ^ names)[:4])
        raise ModelDirError(f"{artifact.graph} is not the graph that edge.json describes ({odd}); export it again")

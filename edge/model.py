"""The edge model on onnxruntime: one graph, or two cut at an inner exit, and several sequences to run on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from ..common.errors import ModelDirError
from .artifact import Artifact
from .sequence import SequenceState
from .split import SplitState


class EdgeModel:
    """The loaded graphs; `sequence()` gives a KV cache to run them on."""

    def __init__(self, sessions: Sequence[ort.InferenceSession], artifact: Artifact) -> None:
        self.sessions = tuple(sessions)
        """One, or the shallow and the deep segment."""
        self.artifact = artifact

    @classmethod
    def load(cls, artifact: Artifact, threads: int = 1) -> EdgeModel:
        """Loads the graphs to run on `threads` cores. Raises ModelDirError when onnxruntime refuses one."""
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take the cores that the other processes of a small box need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sessions = [_open(graph, options) for graph in artifact.graphs]
        for session, graph, wanted in zip(sessions, artifact.graphs, _interfaces(artifact), strict=True):
            _check_interface(session, graph, wanted)
        return cls(sessions, artifact)

    def sequence(self) -> SequenceState:
        """An empty sequence with its own KV cache."""
        shapes, inner = self.artifact.architecture, self.artifact.inner_exit
        if inner is None:
            return SequenceState(self.sessions[0], shapes)
        return SplitState(self.sessions[0], self.sessions[1], shapes, inner.layers)


def _open(graph: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise ModelDirError(f"onnxruntime can't load {graph}: {exc}") from exc


def _interfaces(artifact: Artifact) -> list[set[str]]:
    """The names of inputs and outputs that each graph must have."""
    layers, outputs = artifact.architecture.layers, {"logits", "token", "features"}
    if artifact.inner_exit is None:
        return [{"input_ids"} | outputs | _kv_names(range(layers))]
    cut = artifact.inner_exit.layers
    return [
        {"input_ids", "hidden", "draft", "draft_probability"} | _kv_names(range(cut)),
        {"hidden", "first"} | outputs | _kv_names(range(cut, layers)),
    ]


def _kv_names(layers: range) -> set[str]:
    kv = {f"{side}_{kind}.{i}" for side in ("past", "present") for kind in ("key", "value") for i in layers}
    return kv | {"seqlens_k", "total_length"}


def _check_interface(session: ort.InferenceSession, graph: Path, wanted: set[str]) -> None:
    names = {value.name for value in session.get_inputs()} | {value.name for value in session.get_outputs()}
    if wanted != names:
        odd = ", ".join(sorted(wanted ^ names)[:4])
        raise ModelDirError(f"{graph} is not the graph that edge.json describes ({odd}); export it again")

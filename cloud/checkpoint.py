"""The safetensors files of a Hugging Face directory: checked before anything is read, then read one shard at a time.

Tensors come as views of the mapped file. Whoever reads copies them on, so that loading holds one shard besides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..common.errors import ModelDirError
from ..common.model_dir import read_json

INDEX = "model.safetensors.index.json"

_TYPES = {"F64", "F32", "F16", "BF16"}

Report = Callable[[int, int], None]
"""Takes how many bytes of the files have been read, and of how many."""


class Checkpoint:
    """The tensors of a directory by name. `check` comes first."""

    def __init__(self, directory: Path, report: Report = lambda read, total: None) -> None:
        """Finds the files; ModelDirError when there are none or the index is broken."""
        self._directory = directory
        self._report = report
        self._where = _index(directory)
        self._read = self._total = 0
        self._open: tuple[Path, Any] | None = None
        self._closing = contextlib.ExitStack()

    def check(self, shapes: Mapping[str, tuple[int, ...]], ignored: Callable[[str], bool]) -> None:
        """Reads the files' headers. ModelDirError unless they hold the tensors of `shapes` in types that we serve,
        and of others only what is `ignored`.
        """
        if missing := [name for name in shapes if name not in self._where]:
            raise ModelDirError(f"{self._directory}: no safetensors file holds {_some(missing)}")
        if unknown := [name for name in self._where if name not in shapes and not ignored(name)]:
            raise ModelDirError(
                f"{self._directory}: {len(unknown)} tensors are not supported: {_some(sorted(unknown))}"
            )
        for name in sorted(shapes, key=lambda name: self._where[name]):
            path, file = self._file(name)
            with _reading(path, name):
                header = file.get_slice(name)
                shape, kind = tuple(header.get_shape()), header.get_dtype()
            if shape != shapes[name]:
                raise ModelDirError(f"{path}: {name} has shape {shape}, config.json wants {shapes[name]}")
            if kind not in _TYPES:
                raise ModelDirError(f"{path}: {name} has type {kind}; quantized weights are not supported")
            self._total += torch.Size(shape).numel() * (2 if kind.endswith("16") else 4 if kind == "F32" else 8)

    def read(self, name: str) -> Tensor:
        """A tensor as the file has it, on the CPU. It keeps its shard mapped, so copy it before reading the next."""
        path, file = self._file(name)
        with _reading(path, name):
            tensor: Tensor = file.get_tensor(name)
        self._read += tensor.nbytes
        self._report(self._read, self._total)
        return tensor

    def close(self) -> None:
        """Closes the shard that is open."""
        self._open = None
        self._closing.close()

    def _file(self, name: str) -> tuple[Path, Any]:
        """The file that holds a tensor, opened in place of the one before."""
        path = self._where[name]
        if self._open is None or self._open[0] != path:
            self.close()
            with _reading(path, name):
                self._open = path, self._closing.enter_context(safe_open(path, framework="pt", device="cpu"))
        return self._open


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as exc:
        raise ModelDirError(f"{path}: {name} can't be read: {exc}") from exc


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _index(directory: Path) -> dict[str, Path]:
    """Which file holds which tensor: from the index of a sharded model, or from the files themselves."""
    if (directory / INDEX).exists():
        shards = read_json(directory / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
            raise ModelDirError(f"{directory / INDEX}: weight_map must name a file for each tensor")
        for file in set(shards.values()):
            if Path(file).name != file or not (directory / file).is_file():
                raise ModelDirError(f"{directory / INDEX} names {file!r}, which is no file of this directory")
        return {name: directory / file for name, file in shards.items()}
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ModelDirError(f"{directory} is no complete model directory: it holds no *.safetensors")
    where: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                where |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as exc:
            raise ModelDirError(f"{path} can't be read: {exc}") from exc
    return where

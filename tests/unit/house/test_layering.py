"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# `models` is data with one path in it, so whoever resolves `model: starter` may import it.
MAY_IMPORT: dict[str, set[str]] = {
    "protos": set(),
    "common": {"v1", "models"},
    "models": set(),
    "kernels": {"common"},
    "cache": {"common"},
    "edge": {"common", "v1", "cache", "models"},
    "cloud": {"common", "v1", "kernels", "models"},
    "router": {"common", "v1", "cache", "models"},
    "sdk": {"common", "v1", "models"},
    "training": {"common", "v1", "kernels", "cache", "edge", "cloud", "router", "models"},
}
FOREIGN: dict[str, set[str]] = {
    "cache": {"grpc", "torch", "triton"},
    "kernels": {"grpc"},
    "edge": {"torch", "triton", "transformers"},
    "router": {"torch", "triton", "transformers", "onnxruntime"},
    "sdk": {"torch", "triton", "transformers", "onnxruntime"},
}
PB2_FILES = ("wire", "servicer", "stub", "relay_", "rpc")


def imported(path: Path) -> set[str]:
    """Absolute names of what a file imports; relative imports count from the file's folder."""
    here = "tiermesh" if path.parent.name == "sdk" else f"tiermesh.{path.parent.name}"
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here.split(".")[: len(here.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def sources(folder: str) -> list[Path]:
    return [p for p in sorted((ROOT / folder).rglob("*.py")) if not p.stem.endswith(("_pb2", "_pb2_grpc"))]


def ours(name: str) -> str | None:
    """The folder's import name, "root" for the SDK itself, None for other people's packages."""
    parts = name.split(".")
    if parts[0] != "tiermesh":
        return None
    known = {*MAY_IMPORT, "v1", "bench"}
    return parts[1] if len(parts) > 1 and parts[1] in known else "root"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder} | ({"root"} if folder == "sdk" else set())
    for path in sources(folder):
        for name in imported(path):
            assert ours(name) in allowed | {None}, f"{path.relative_to(ROOT)} imports {name}"
            assert name.split(".")[0] not in FOREIGN.get(folder, set()), f"{path.relative_to(ROOT)} imports {name}"


def test_generated_messages_stay_at_the_border() -> None:
    for folder in MAY_IMPORT:
        for path in sources(folder):
            if not (path.parent.name == "common" and any(part in path.stem for part in PB2_FILES)):
                generated = [n for n in imported(path) if "_pb2" in n and n.startswith("tiermesh")]
                border = path.parent.name == "sdk" and path.stem == "calls"
                assert border or not generated, f"{path.relative_to(ROOT)} imports {generated}"


def test_training_starts_no_service() -> None:
    for path in sources("training"):
        assert not [n for n in imported(path) if n.split(".")[2:3] in (["service"], ["main"])], path


def test_the_reader_sees_relative_and_absolute_imports() -> None:
    names = imported(ROOT / "common" / "wire.py")
    assert {"tiermesh.common.types", "tiermesh.common.errors.InvalidRequest", "tiermesh.v1.types_pb2"} <= names
    assert all(sources(folder) for folder in MAY_IMPORT if folder != "protos")

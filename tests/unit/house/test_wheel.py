"""The package as users get it: built, unpacked elsewhere, imported without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tiermesh.bench.tree import ROOT, tree_files

IMPORT_ALL = """
import importlib, json, pathlib, sys, warnings
warnings.simplefilter("ignore")  # other people's imports; ours are tested elsewhere
root = pathlib.Path(sys.argv[1])
names = {
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    for path in (root / "tiermesh").rglob("*.py")
}
print(json.dumps({name: importlib.import_module(name).__file__ for name in sorted(names)}))
"""
LIGHT = """
import sys
import tiermesh
heavy = {"numpy", "structlog", "pydantic", "torch", "typer", "rich", "yaml", "onnxruntime", "prometheus_client"}
sys.exit(" ".join(sorted(heavy & set(sys.modules))) or 0)
"""


def python(code: str, where: Path, *arguments: str) -> str:
    """What a fresh interpreter prints that finds the unpacked wheel before anything else."""
    command = [sys.executable, "-P", "-c", code, *arguments]
    environ = {**os.environ, "PYTHONPATH": str(where)}
    done = subprocess.run(command, cwd=where, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, built from a copy: a build folder in the checkout would keep modules that are gone."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in tree_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(out / "unpacked")
    return out / "unpacked"


@pytest.mark.slow
def test_every_module_is_in_the_wheel_and_imports(unpacked: Path) -> None:
    files: dict[str, str] = json.loads(python(IMPORT_ALL, unpacked, str(unpacked)).splitlines()[-1])
    assert all(Path(file).is_relative_to(unpacked) for file in files.values())
    folders = {"sdk": "tiermesh", "protos/tiermesh/v1": "tiermesh.v1"}
    for folder in ("common", "kernels", "cache", "edge", "cloud", "router", "training", "bench", "models"):
        folders[folder] = f"tiermesh.{folder}"
    sources = {
        f"{folders[str(p.parent)]}.{p.stem}"
        for p in map(Path, tree_files())
        if str(p.parent) in folders and p.suffix == ".py"
    }
    assert {name.removesuffix(".__init__") for name in sources} == set(files)


@pytest.mark.slow
def test_data_is_in_the_wheel(unpacked: Path) -> None:
    package = unpacked / "tiermesh"
    assert (package / "py.typed").exists()
    assert (package / "v1" / "relay.proto").exists()
    starter = {str(Path(n).relative_to("models")) for n in tree_files() if n.startswith("models/starter/")}
    assert starter == {
        str(p.relative_to(package / "models")) for p in package.glob("models/starter/**/*") if p.is_file()
    }


@pytest.mark.slow
def test_the_sdk_alone_is_light(unpacked: Path) -> None:
    python(LIGHT, unpacked)

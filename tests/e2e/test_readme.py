"""Every command and snippet of the README, and the examples, as a reader would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
NOT_HERE = {"make test": "it is what runs this", "tiermesh up": "the mesh of these tests is one"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line not in NOT_HERE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader sits: the checkout's examples at hand, and room to write."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def environ(mesh: dict[str, Any]) -> dict[str, str]:
    """The commands' defaults, moved to where the mesh of the tests listens."""
    moved = {f"TIERMESH_{name.upper()}__METRICS": f"'{address}'" for name, address in mesh["metrics"].items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **moved, "TIERMESH_ADDRESS": mesh["edge"], "TIERMESH_ROUTER": mesh["router"], "PATH": path}


def test_the_readme_is_short_and_has_its_commands() -> None:
    assert len(README.splitlines()) < 120
    assert len(COMMANDS) >= 8
    assert all(line in README for line in NOT_HERE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme(command: str, mesh: dict[str, Any], folder: Path) -> None:
    where = ROOT if command.startswith(("make ", "source ")) else folder
    run = subprocess.run(
        ["bash", "-c", command], cwd=where, env=environ(mesh), capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("code", blocks("python"))
def test_a_snippet_of_the_readme(code: str, mesh: dict[str, Any], folder: Path) -> None:
    assert "127.0.0.1:7070" in code
    moved = code.replace("127.0.0.1:7070", mesh["edge"])
    run = subprocess.run([sys.executable, "-P", "-c", moved], cwd=folder, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("*.py")))
def test_an_example(example: str, mesh: dict[str, Any], folder: Path) -> None:
    command = [sys.executable, "-P", f"examples/{example}", mesh["edge"]]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/*.md")))])
def test_pages_name_only_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    named = re.findall(
        r"`((?:protos|common|kernels|cache|edge|cloud|router|sdk|training|bench|models)/[\w./]*\w)`", text
    )
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing

"""A mesh of real processes, started by the command line as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tiermesh.models import starter

TIERMESH = [sys.executable, "-P", "-m", "tiermesh.cli"]


@dataclass
class Command:
    """A running `tiermesh …`."""

    process: subprocess.Popen[str]

    def interrupt(self, within_s: float = 30) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(within_s)

    def children(self) -> list[int]:
        """Services that this command started and that still run: each carries our process id as an argument."""
        marker = b"tiermesh.child\0%d\0" % self.process.pid
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found


def until(condition: Callable[[], Any], within_s: float = 60) -> Any:
    """The first true value of the condition."""
    ends = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < ends, "the condition never came true"
        time.sleep(0.02)
    return value


@dataclass
class Shell:
    """Runs commands in a folder of their own, and leaves none behind."""

    folder: Path
    started: list[Command]

    def start(self, *arguments: str, **environ: str) -> Command:
        """Starts `tiermesh …`; its output is piped."""
        process = subprocess.Popen(
            [*TIERMESH, *arguments],
            cwd=self.folder,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(Command(process))
        return self.started[-1]

    def run(self, *arguments: str, within_s: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs `tiermesh …` to its end."""
        process = self.start(*arguments, **environ).process
        out, err = process.communicate(timeout=within_s)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def up(self, *arguments: str) -> tuple[Command, dict[str, Any]]:
        """`tiermesh up` on free ports, once it is ready: the command and what its ready file says."""
        path = self.folder / "ready.json"
        command = self.start("up", "--any-ports", "--ready-file", str(path), *arguments)
        until(lambda: path.exists() or command.process.poll() is not None)
        assert path.exists(), command.process.communicate()[1]
        return command, json.loads(path.read_text())

    def close(self) -> None:
        """Ends what a failed test left."""
        for command in self.started:
            if command.process.poll() is None:
                command.process.kill()
            command.process.communicate()


@pytest.fixture(scope="session", autouse=True)
def starter_models() -> None:
    assert (starter() / "cloud" / "model.safetensors").exists(), "the starter models are part of the package"


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    return until


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, [])
    yield shell
    shell.close()


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One mesh for all tests that only ask; the content of its ready file."""
    shell = Shell(tmp_path_factory.mktemp("mesh"), [])
    try:
        command, facts = shell.up()
        yield facts
        assert command.interrupt() == 130
        until(lambda: not command.children(), 5)
    finally:
        shell.close()

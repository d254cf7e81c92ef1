"""Starting, stopping and dying together."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def taken() -> Iterator[str]:
    """An address where somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_service_that_dies_brings_the_others_down(shell: Any, until: Any) -> None:
    command, facts = shell.up()
    os.kill(facts["pids"]["cloud"], signal.SIGKILL)
    _, err = command.process.communicate(timeout=30)
    assert command.process.returncode == 1
    assert "cloud was ended by SIGKILL" in err.splitlines()[-1]
    assert command.children() == []
    assert not (shell.folder / "ready.json").exists()


def test_services_end_with_a_killed_parent(shell: Any, until: Any) -> None:
    command, _ = shell.up()
    assert len(command.children()) == 3
    command.process.kill()
    until(lambda: not command.children(), 20)


def test_sigterm_drains_and_stops(shell: Any) -> None:
    command, _ = shell.up()
    command.process.terminate()
    assert command.process.wait(30) == 0
    assert command.children() == []


@pytest.mark.parametrize("service", ["router", "edge", "cloud"])
def test_a_port_in_use_is_told(shell: Any, taken: str, service: str) -> None:
    done = shell.run(service, "--listen", taken)
    assert done.returncode == 1
    assert taken in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("service", ["edge", "cloud"])
def test_a_missing_model_directory_is_told(shell: Any, service: str) -> None:
    done = shell.run(service, "--model", "/nowhere/at/all", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "/nowhere/at/all" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_up_tells_which_service_did_not_start(shell: Any, taken: str) -> None:
    (shell.folder / "mesh.yaml").write_text(f"cloud: {{listen: '{taken}', metrics: null}}\n")
    done = shell.run("up", "--config", "mesh.yaml")
    assert done.returncode == 1
    assert "cloud ended with status 1" in done.stderr
    assert taken in done.stderr


def test_an_unknown_key_of_the_configuration_is_told_with_its_line(shell: Any) -> None:
    (shell.folder / "mesh.yaml").write_text("mesh: {name: here}\nrouter:\n  lisen: 127.0.0.1:0\n")
    for command in (("config", "check", "mesh.yaml"), ("up", "--config", "mesh.yaml")):
        done = shell.run(*command)
        assert done.returncode == 1
        assert "mesh.yaml:3" in done.stderr
        assert "router.lisen" in done.stderr

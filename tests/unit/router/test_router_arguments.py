"""The command line over the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiermesh.common.errors import ConfigError
from tiermesh.common.secret import write_secret
from tiermesh.router.arguments import parse, read_config


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "mesh.yaml"
    config.write_text("router: {listen: 127.0.0.1:1, workers: ['127.0.0.1:2']}\n")
    given = ["--config", str(config), "--listen", "127.0.0.1:0", "--worker", "127.0.0.1:3,127.0.0.1:4"]
    router = read_config(parse(given)).router
    assert (router.listen, router.workers) == ("127.0.0.1:0", ("127.0.0.1:3", "127.0.0.1:4"))
    assert router.metrics == "127.0.0.1:9080"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:0"], "is open beyond this machine"),
        (["--metrics", "0.0.0.0:0"], "is open beyond this machine"),
        (["--listen", "nonsense"], "no address"),
        (["--config", "missing.yaml"], "can't read the configuration"),
        (["--worker", "127.0.0.1:1,worker"], "no address"),
    ],
)
def test_what_can_not_be_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_config(parse(arguments))


def test_an_unknown_flag_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--workers", "127.0.0.1:1"])
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_redis_needs_the_secret_that_routers_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--redis", "redis://127.0.0.1:6379/0"]
    with pytest.raises(ConfigError, match=r"TIERMESH_MESH__SECRET_FILE"):
        read_config(parse(given))
    write_secret(tmp_path / "mesh.secret")
    monkeypatch.setenv("TIERMESH_MESH__SECRET_FILE", str(tmp_path / "mesh.secret"))
    mesh = read_config(parse(given))
    assert (mesh.cache.url, mesh.cache.shared) == ("redis://127.0.0.1:6379/0", True)
    with pytest.raises(ConfigError, match=r"cache\.url"):
        read_config(parse(["--redis", "127.0.0.1:6379"]))

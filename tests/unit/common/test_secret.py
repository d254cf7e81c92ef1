"""The mesh's secret: made once, for its owner alone, read with care, shown nowhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cli import run
from tiermesh.common.config import default_mesh, load_config
from tiermesh.common.errors import ConfigError
from tiermesh.common.secret import Secret, read_secret, write_secret

NAMES = st.text(max_size=20)


def config(folder: Path, secret_file: str = "mesh.secret") -> Path:
    path = folder / "mesh.yaml"
    path.write_text(f"insecure: false\nmesh: {{name: home, secret_file: {secret_file}}}\n")
    return path


def fault(folder: Path, secret_file: str = "mesh.secret") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config(folder, secret_file), {}, with_secret=True)
    assert str(caught.value).startswith("mesh.yaml:2: mesh.secret_file: ")
    assert [violation.field for violation in caught.value.violations] == ["mesh.secret_file"]
    return str(caught.value)


def test_a_secret_is_made_for_its_owner_and_read_by_routers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        assert run(["keys", "init", "--out", str(tmp_path / "mesh.secret")]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "mesh.secret").stat().st_mode) == 0o600
    text = (tmp_path / "mesh.secret").read_text()
    secret = load_config(config(tmp_path), {}, with_secret=True).secret
    assert secret is not None
    assert text == secret.value.hex() + "\n"
    assert len(secret.value) == 32
    assert text.strip() not in "".join(capsys.readouterr())
    assert load_config(config(tmp_path), {}).secret is None


def test_a_secret_that_exists_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mesh.secret"
    write_secret(path)
    first = path.read_text()
    assert run(["keys", "init", "--out", str(path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{path} exists and stays as it is" in told.err
    assert "--out" in told.err
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert run(["keys", "init", "--out", str(tmp_path / "link")]) == 1
    assert run(["keys", "init", "--out", str(tmp_path / "nowhere" / "mesh.secret")]) == 1
    assert "can't make" in capsys.readouterr().err
    assert path.read_text() == first
    assert not (tmp_path / "elsewhere").exists()


def test_secrets_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_secret(tmp_path / name)
    assert read_secret(tmp_path / "a") != read_secret(tmp_path / "b")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_owner_and_group_may_read_it(tmp_path: Path, mode: int) -> None:
    write_secret(tmp_path / "mesh.secret")
    (tmp_path / "mesh.secret").chmod(mode)
    assert load_config(config(tmp_path), {}, with_secret=True).secret is not None


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o666])
def test_a_secret_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mesh.secret"
    write_secret(path)
    path.chmod(mode)
    told = fault(tmp_path)
    assert f"{mode:04o}" in told
    assert f"chmod 600 {path}" in told
    assert path.read_text().strip() not in told


def test_a_missing_secret_says_how_to_make_it(tmp_path: Path) -> None:
    assert f"tiermesh keys init --out {tmp_path / 'mesh.secret'}" in fault(tmp_path)
    assert "Is a directory" in fault(tmp_path, ".")


GARBAGE = ["", "ab" * 31, "ab" * 33, "zz" * 32, "ab" * 32 + "\n\n", "ab" * 32 + "\nabc", "\xff" * 64, "ab" * 4000]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_secret_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mesh.secret"
    path.write_bytes(content.encode("latin-1"))
    path.chmod(0o600)
    told = fault(tmp_path)
    assert "64 hex digits" in told
    assert not content or content.strip()[:16] not in told


def test_the_secret_itself_is_no_file_name(tmp_path: Path) -> None:
    for value in ("ab" * 32, "9" * 64):
        told = fault(tmp_path, value)
        assert value[:16] not in told


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    write_secret(tmp_path / "other")
    environ = {"TIERMESH_MESH__SECRET_FILE": str(tmp_path / "other")}
    assert default_mesh(environ, with_secret=True).secret == read_secret(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"TIERMESH_MESH__SECRET_FILE: mesh\.secret_file: there is no"):
        default_mesh({"TIERMESH_MESH__SECRET_FILE": str(tmp_path / "none")}, with_secret=True)


def test_config_check_reads_it_as_a_router_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "check", str(config(tmp_path))]) == 1
    assert "mesh.yaml:2: mesh.secret_file" in capsys.readouterr().err
    write_secret(tmp_path / "mesh.secret")
    assert run(["config", "check", str(config(tmp_path))]) == 0


@given(value=st.binary(min_size=32, max_size=32))
def test_a_secret_is_in_no_repr(value: bytes) -> None:
    from dataclasses import replace

    secret = Secret(value)
    for shown in (repr(secret), f"{secret}", repr(replace(default_mesh({}), secret=secret))):
        assert value.hex() not in shown
        assert repr(value)[2:-1] not in shown


@given(value=st.binary(min_size=32, max_size=32), one=NAMES, other=NAMES)
def test_salts_belong_to_one_secret_and_one_node(value: bytes, one: str, other: str) -> None:
    secret = Secret(value)
    assert len(secret.policy_salt(one)) == 16
    assert (secret.policy_salt(one) == secret.policy_salt(other)) is (one == other)
    assert secret.policy_salt(one) != Secret(bytes(b ^ 1 for b in value)).policy_salt(one)
    assert secret.policy_salt(one)[:4] not in value

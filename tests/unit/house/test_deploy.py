"""What compose.yaml, mesh.yaml and the Dockerfiles promise, without Docker; deploy/try.sh shows the rest."""

from __future__ import annotations

import importlib
import importlib.util
import re
import stat
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tiermesh.common.config import MeshConfig, load_config
from tiermesh.common.errors import ConfigError
from tiermesh.common.keys import key_hash

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
SERVICES = {"worker-1": "cloud", "worker-2": "cloud", "router": "router", "edge": "edge"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What secrets.sh made."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    subprocess.run([DEPLOY / "secrets.sh"], env={"KEYS_FILE": str(file), "PATH": "/usr/bin:/bin"}, check=True)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def compose(keys: dict[str, str]) -> dict[str, Any]:
    """compose.yaml with its variables filled in, as Compose does it."""

    def fill(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        assert kind == "-" or name in keys, f"{name} has no default, and secrets.sh doesn't make it"
        return keys.get(name, rest if kind == "-" else "")

    filled: dict[str, Any] = yaml.safe_load(VARIABLE.sub(fill, (DEPLOY / "compose.yaml").read_text()))
    return filled


def config_of(compose: dict[str, Any], service: str) -> MeshConfig:
    return load_config(DEPLOY / "mesh.yaml", compose["services"][service]["environment"])


def dockerfile(service: str) -> list[str]:
    """Its instructions, comments and continuations resolved."""
    text = (DEPLOY / f"{service}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def final_stage(service: str) -> list[str]:
    lines = dockerfile(service)
    starts = [index for index, line in enumerate(lines) if line.startswith("FROM ")]
    return lines[starts[-1] :]


def test_compose_has_the_whole_mesh(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"redis", *SERVICES}


def test_compose_confines_every_service(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert {"mem_limit", "cpus", "pids_limit"} <= service.keys(), name
        assert not service.get("privileged"), name


def test_compose_publishes_on_loopback_alone(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert compose["networks"]["inside"] == {"internal": True}
    for name in ("redis", "worker-1", "worker-2"):
        assert compose["services"][name]["networks"] == ["inside"]
        assert "ports" not in compose["services"][name]


def test_compose_waits_for_health_on_the_way_up(compose: dict[str, Any]) -> None:
    healthy = {"condition": "service_healthy"}
    services = compose["services"]
    assert services["router"]["depends_on"] == {"redis": healthy, "worker-1": healthy, "worker-2": healthy}
    assert services["edge"]["depends_on"] == {"router": healthy}


@pytest.mark.parametrize("service", SERVICES)
def test_compose_lets_running_answers_finish(compose: dict[str, Any], keys: dict[str, str], service: str) -> None:
    """A router ends two seconds after its drain at most."""
    if service == "router":
        grace_s = config_of(compose, service).router.drain_s + 2.0
    else:
        grace_s = importlib.import_module(f"tiermesh.{SERVICES[service]}.main").GRACE_S
    assert int(compose["services"][service]["stop_grace_period"].removesuffix("s")) > grace_s


@pytest.mark.parametrize("service", SERVICES)
def test_the_configuration_is_whole_in_every_container(
    compose: dict[str, Any], keys: dict[str, str], service: str
) -> None:
    mesh = config_of(compose, service)
    assert [tenant.key_hashes for tenant in mesh.tenants] == [(key_hash(keys["API_KEY"]),)]
    assert [(node.name, node.key_hash) for node in mesh.router.nodes] == [(mesh.edge.name, key_hash(keys["NODE_KEY"]))]
    assert mesh.router.workers == ("worker-1:7090", "worker-2:7090")
    assert mesh.edge.upstream == "router:7080"
    section = getattr(mesh, SERVICES[service])
    assert compose["services"][service]["healthcheck"]["test"][-1] == section.listen.replace("0.0.0.0", "127.0.0.1")


def test_the_configuration_names_no_key_by_itself() -> None:
    with pytest.raises(ConfigError, match=r"router\.nodes\.edge\.key"):
        load_config(DEPLOY / "mesh.yaml", {})


def test_each_service_has_its_own_secret_alone(compose: dict[str, Any], keys: dict[str, str]) -> None:
    secrets = {"API_KEY": set[str](), "NODE_KEY": {"edge"}, "WORKER_TOKEN": {"router", "worker-1", "worker-2"}}
    for secret, owners in secrets.items():
        holders = {
            name
            for name, service in compose["services"].items()
            if keys[secret] in service.get("environment", {}).values()
        }
        assert holders == owners, secret
    for name in secrets["WORKER_TOKEN"]:
        assert config_of(compose, name).router.worker_token == keys["WORKER_TOKEN"]


def test_the_router_alone_is_handed_the_meshs_secret(compose: dict[str, Any], keys: dict[str, str]) -> None:
    assert {name for name, service in compose["services"].items() if "secrets" in service} == {"router"}
    router, handed = compose["services"]["router"], compose["secrets"]["mesh"]["file"]
    assert router["secrets"] == ["mesh"]
    assert router["environment"]["TIERMESH_MESH__SECRET_FILE"] == "/run/secrets/mesh"
    state = Path(handed).stat()
    assert router["group_add"] == [str(state.st_gid)]
    assert stat.S_IMODE(state.st_mode) == 0o640
    environ = router["environment"] | {"TIERMESH_MESH__SECRET_FILE": handed}
    assert load_config(DEPLOY / "mesh.yaml", environ, with_secret=True).secret is not None


def test_the_router_keeps_answers_in_the_redis_of_the_file(compose: dict[str, Any]) -> None:
    cache = config_of(compose, "router").cache
    assert cache.shared
    assert urlsplit(cache.url).hostname in compose["services"]
    assert "inside" in compose["services"]["router"]["networks"]


def test_keys_are_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    command, environment = [str(DEPLOY / "secrets.sh")], {"KEYS_FILE": str(file), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, env=environment, check=True)
    first = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert file.read_text() == first
    file.unlink()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1
    assert {"/deploy/.env", "mesh.secret"} <= set((ROOT / ".gitignore").read_text().splitlines())


@pytest.mark.parametrize("service", sorted(set(SERVICES.values())))
def test_dockerfile_runs_one_service_without_root(service: str) -> None:
    lines = final_stage(service)
    user = next(line for line in lines if line.startswith("USER "))
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", user)
    assert lines[-1] == f'ENTRYPOINT ["python", "-P", "-m", "tiermesh.{service}.main"]'
    assert any(re.match(r'HEALTHCHECK .* CMD \["python"', line) for line in lines)
    assert "STOPSIGNAL SIGTERM" in lines
    assert service in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("service", sorted(set(SERVICES.values())))
def test_dockerfile_installs_from_the_wheelhouse_alone(service: str) -> None:
    lines = dockerfile(service)
    assert lines[0].startswith("ARG BASE_IMAGE=python:3.11-slim")
    assert all(line.split()[1] in ("${BASE_IMAGE}", "dependencies") for line in lines if line.startswith("FROM "))
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2
    assert all("--no-index --no-deps" in line for line in installs)
    assert any("pip check" in line for line in lines)
    local = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert local == [f"wheels/{service}", "wheels/app", "deploy/healthcheck.py"]
    layers = re.findall(r"^COPY --from=(\w+)", "\n".join(final_stage(service)), re.MULTILINE)
    assert layers == ["dependencies", "application"]


def test_builds_see_the_wheelhouse_alone() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules == ["*", "!deploy/healthcheck.py", "!wheels"]


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_script_parses_and_stops_at_errors(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert re.search(r"^set -eu", script.read_text(), re.MULTILINE)
    assert script.stat().st_mode & stat.S_IXUSR


def test_the_log_is_of_a_run_that_went_well() -> None:
    log = (DEPLOY / "try.log").read_text()
    assert log.rstrip().endswith("OK")
    assert "finished: 20 of 20" in log
    assert not re.search(r"tm_[0-9a-f]{8}|/home/|/root/|/tmp/", log)


@pytest.fixture
def healthcheck() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_healthcheck", DEPLOY / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_healthcheck_says_what_the_server_says(healthcheck: ModuleType) -> None:
    server, servicer = grpc.server(ThreadPoolExecutor(1)), health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        assert healthcheck.main(address) == 0
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert healthcheck.main(address) == 1
    finally:
        server.stop(None).wait()
    assert healthcheck.main(address) == 1

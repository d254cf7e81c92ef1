"""The configuration: defaults, errors with their place, overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiermesh.cli import run
from tiermesh.common.config import DEMO_KEY, default_mesh, load_config, model_path, require_safe_listen
from tiermesh.common.errors import ConfigError
from tiermesh.common.keys import key_hash, new_key
from tiermesh.common.secret import write_secret
from tiermesh.common.types import Quality

HASH = key_hash("some-key")
GOOD = f"""
mesh: {{name: home}}
tiers:
  fast: {{ttft_ms: 50, deadline_ms: 5000, min_share: 0.2}}
  slow: {{ttft_ms: 500, deadline_ms: 60000}}
tenants:
  acme-co:
    api_keys: ["{HASH}"]
    weight: 2
    limits: {{concurrent: 3}}
    quality: {{mode: exact}}
cloud: {{model: weights, slots: 4}}
router:
  worker_token: a-long-enough-token
  nodes: {{shop: {{key: "{HASH}", tenants: [acme-co]}}}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mesh.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_demo_mesh_on_loopback() -> None:
    mesh = default_mesh({})
    assert [tier.name for tier in mesh.tiers] == ["realtime", "standard", "batch"]
    (demo,) = mesh.tenants
    assert (demo.name, demo.key_hashes, demo.tiers[0]) == ("demo", (key_hash(DEMO_KEY),), "standard")
    assert mesh.router.workers == (mesh.cloud.listen,)
    assert mesh.edge.upstream == mesh.router.listen
    assert mesh.router.nodes_open
    assert mesh.cloud.model == model_path("starter", "cloud")


def test_a_file_becomes_frozen_types_in_seconds(tmp_path: Path) -> None:
    mesh = load_config(write(tmp_path, GOOD), {})
    assert (mesh.tiers[0].ttft_s, mesh.tiers[1].deadline_s) == (0.05, 60.0)
    (tenant,) = mesh.tenants
    assert tenant.tiers == ("fast", "slow")
    assert (tenant.weight, tenant.limits.concurrent, tenant.limits.queued) == (2.0, 3, 256)
    assert tenant.quality is Quality.EXACT
    assert mesh.cloud.model == tmp_path / "weights"
    assert mesh.cloud.token == "a-long-enough-token"
    assert mesh.router.nodes[0].tenants == ("acme-co",)
    assert not mesh.router.nodes_open


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ttft_ms: 50,", 'ttft_ms: "50",', "mesh.yaml:4: tiers.fast.ttft_ms: should be a valid integer"),
        ("min_share: 0.2", "min_share: 0.2, colour: red", "mesh.yaml:4: tiers.fast.colour: unknown key"),
        ("min_share: 0.2", "min_share: 1.0", "mesh.yaml:3: tiers: the min_share of all tiers"),
        ("min_share: 0.2", "min_share: .nan", "mesh.yaml:4: tiers.fast.min_share"),
        ("deadline_ms: 5000", "deadline_ms: 20", "mesh.yaml:4: tiers.fast.ttft_ms: must not exceed"),
        ("weight: 2", "weight: 0", "mesh.yaml:9: tenants.acme-co.weight: should be greater than 0"),
        ("weight: 2", "tiers: [fast, warp]", "mesh.yaml:9: tenants.acme-co.tiers[1]: no tier 'warp'; there are fast"),
        ("weight: 2", "weight: 2\n    weight: 3", "mesh.yaml:10: tenants.acme-co.weight: given twice"),
        ("weight: 2", "api_keys_file: nowhere.txt", "mesh.yaml:9: tenants.acme-co.api_keys_file: can't read it"),
        ("mode: exact", "mode: best", "mesh.yaml:11: tenants.acme-co.quality.mode"),
        ("mesh: {name: home}", "mesh: [", "mesh.yaml:4: no valid YAML"),
        ("mesh: {name: home}", "mush: {name: home}", "mesh.yaml:2: mush: unknown key"),
        ("slots: 4", "listen: 0.0.0.0:7090", "mesh.yaml:12: cloud.listen: 0.0.0.0:7090 is open beyond this machine"),
        ("slots: 4", "listen: 7090", "mesh.yaml:12: cloud.listen"),
        ("slots: 4", "metrics: '127.0.0.1:99999'", "is no address"),
        (
            "slots: 4",
            "listen: 0.0.0.0:7090, announce_to: ['router:7080']",
            "mesh.yaml:12: cloud.advertise: 0.0.0.0:7090 is nowhere that routers can reach",
        ),
        ("tenants: [acme-co]", "tenants: [nobody]", "router.nodes.shop.tenants[0]: no tenant 'nobody'"),
        ("worker_token:", "http: 127.0.0.1:8080\n  worker_token:", "mesh.yaml:14: router.http: unknown key"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace(old, new, 1)), {})
    assert expected in str(caught.value)


def test_a_worker_that_announces_itself_needs_the_token_of_the_routers(tmp_path: Path) -> None:
    text = GOOD.replace("slots: 4", "slots: 4, announce_to: ['router:7080'], advertise: worker-1:7090")
    mesh = load_config(write(tmp_path, text), {})
    assert (mesh.cloud.announce_to, mesh.cloud.advertise) == (("router:7080",), "worker-1:7090")
    with pytest.raises(ConfigError, match=r"cloud\.announce_to: routers take no announcement without"):
        load_config(write(tmp_path, text.replace("worker_token: a-long-enough-token", "alpha: 1.0")), {})


def test_all_faults_come_at_once_and_keys_are_never_shown(tmp_path: Path) -> None:
    text = GOOD.replace("ttft_ms: 50,", "ttft_ms: -1,").replace(f'["{HASH}"]', '["my-secret-key"]')
    text = text.replace("a-long-enough-token", "short-secret")
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), {})
    assert len(caught.value.violations) == 3
    assert "secret" not in str(caught.value)


def test_a_missing_file_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read the configuration"):
        load_config(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match=r"mesh.yaml:1: the file must be a mapping"):
        load_config(write(tmp_path, "- a\n"), {})


def test_variables_override_values_whatever_the_case_of_names(tmp_path: Path) -> None:
    environ = {
        "TIERMESH_TENANTS__ACME_CO__WEIGHT": "5",
        "TIERMESH_ROUTER__WORKERS": "['127.0.0.1:1', '127.0.0.1:2']",
        "TIERMESH_INSECURE": "true",
        "TIERMESH_ROUTER__LISTEN": "0.0.0.0:7080",
        "TIERMESH_API_KEY": "belongs to the command line",
    }
    mesh = load_config(write(tmp_path, GOOD), environ)
    assert mesh.tenants[0].weight == 5.0
    assert len(mesh.router.workers) == 2
    assert mesh.router.listen == "0.0.0.0:7080"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TIERMESH_CLOUD__SLOTS", "many", "TIERMESH_CLOUD__SLOTS: cloud.slots"),
        ("TIERMESH_CLOUD__COLOUR", "red", "TIERMESH_CLOUD__COLOUR: cloud.colour: unknown key"),
        ("TIERMESH_CLOUD__", "1", "write TIERMESH_SECTION__KEY"),
        ("TIERMESH_CLOUD__SLOTS", "[", "no valid YAML value"),
        ("TIERMESH_ROUTER__LISTEN", "0.0.0.0:1", "is open beyond this machine"),
        ("TIERMESH_MESH__NAME__FIRST", "x", "is a value, not a section"),
    ],
)
def test_a_bad_variable_is_an_error_that_names_it(tmp_path: Path, variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD), {variable: value})
    assert variable in str(caught.value)
    assert expected in str(caught.value)


def test_keys_may_live_in_a_file_of_hashes(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# phones\n{HASH}  # Ann\n\n")
    path = write(tmp_path, "tenants: {a: {api_keys_file: keys}}")
    assert load_config(path, {}).tenants[0].key_hashes == (HASH,)
    (tmp_path / "keys").write_text(f"{HASH}\nplain-key\n")
    with pytest.raises(ConfigError, match="line 2 is no hash"):
        load_config(path, {})


def test_two_tenants_can_not_share_a_key(tmp_path: Path) -> None:
    text = f'tenants: {{a: {{api_keys: ["{HASH}"]}}, b: {{api_keys: ["{HASH}"]}}}}'
    with pytest.raises(ConfigError, match=r"tenants\.b: has a key that tenant 'a' has too"):
        load_config(write(tmp_path, text), {})


def test_listening_beyond_loopback_needs_a_word() -> None:
    require_safe_listen("127.0.0.1:0", False)
    require_safe_listen("[::1]:0", False)
    require_safe_listen("0.0.0.0:0", True)
    for address in ("0.0.0.0:0", "[::]:0", "example.org:1"):
        with pytest.raises(ConfigError, match="insecure"):
            require_safe_listen(address, False)
    with pytest.raises(ConfigError, match="no address"):
        require_safe_listen("7080", False)


def test_keys_are_long_and_their_hash_is_stable() -> None:
    assert new_key() != new_key()
    assert len(new_key()) > 40
    assert key_hash("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_may_be_shared_where_there_is_a_secret(tmp_path: Path) -> None:
    write_secret(tmp_path / "mesh.secret")
    shared = "cache: {url: 'redis://:hunter2@cache:6379/1', budget_ms: 8, lease_ms: 3000}\n"
    path = write(tmp_path, GOOD + shared)
    with pytest.raises(ConfigError, match=r"mesh\.yaml:\d+: cache\.url: .*mesh\.secret_file"):
        load_config(path, {}, with_secret=True)
    assert load_config(path, {}).cache.shared  # edge nodes and workers need no secret
    mesh = load_config(path, {"TIERMESH_MESH__SECRET_FILE": "mesh.secret"}, with_secret=True)
    assert (mesh.cache.shared, mesh.cache.budget_s, mesh.cache.lease_s) == (True, 0.008, 3.0)
    assert "hunter2" not in repr(mesh)
    assert not load_config(write(tmp_path, GOOD), {}).cache.shared


@pytest.mark.parametrize(
    "url",
    ["redis:/hunter2@x", "redis://", "http://:hunter2@h:1", "memory", "redis://:hunter2@h:x", "", "redis://h:99999"],
)
def test_a_url_that_is_none_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"cache\.url: write memory://, or redis://host:6379/0") as caught:
        load_config(write(tmp_path, f"cache: {{url: {url!r}}}\n"), {})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as wrong:
        load_config(write(tmp_path, "cache: {url: 7}\n"), {})
    assert "cache.url" in str(wrong.value)


def test_an_operators_key_is_no_tenants(tmp_path: Path) -> None:
    operator = key_hash("operator")
    good = GOOD.replace("router:", f"router:\n  admin_keys: ['{operator}']")
    mesh = load_config(write(tmp_path, good), {})
    assert (mesh.router.admin_keys, mesh.router.admin_open) == ((operator,), False)
    with pytest.raises(ConfigError, match=r"router\.admin_keys\[0\]: is a key of tenant 'acme-co' too"):
        load_config(write(tmp_path, good.replace(operator, HASH)), {})


KEY = new_key()
PLAIN = f"""\
tenants:
  demo:
    api_keys: ["{HASH}"]  # {KEY}
edge: {{node_key: {KEY}}}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"tenants: {{demo: {{api_keys: [{KEY}]}}}}", "mesh.yaml:1: tenants.demo.api_keys[0]: write sha256: and"),
        ("tenants:\n  demo:\n    api_keys: [12345]", "mesh.yaml:3: tenants.demo.api_keys[0]: should be a valid string"),
        (f"tenants: {{demo: {KEY}}}", "mesh.yaml:1: tenants.demo: should be a valid dictionary"),
        (f"tenants: {{demo: {{api_keys: {KEY}}}}}", "mesh.yaml:1: tenants.demo.api_keys: should be a valid list"),
        (f"tenants: {{demo: {{key: {KEY}}}}}", "mesh.yaml:1: tenants.demo.key: unknown key"),
        (f"tenants: {{demo: {{api_keys: ['sha256:{KEY}']}}}}", "tenants.demo.api_keys[0]: write sha256: and"),
        (f"router: {{admin_keys: [{KEY}]}}", "mesh.yaml:1: router.admin_keys[0]: write sha256: and"),
        (f"router: {{nodes: {{shop: {{key: {KEY}, tenants: []}}}}}}", "router.nodes.shop.key: write sha256: and"),
        (PLAIN, "mesh.yaml:3: holds a key in plain: put its hash there"),
    ],
)
def test_a_key_in_plain_is_found_wherever_it_is_and_never_shown(
    tmp_path: Path, text: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, text)
    assert run(["config", "check", str(path)]) == 1
    told = capsys.readouterr()
    assert expected in told.err
    assert KEY not in told.err + told.out
    assert "12345" not in told.err + told.out


def test_a_credential_of_ones_own_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, f"edge: {{node_key: {KEY}}}\nrouter:\n  worker_token: '{new_key()}'\n")
    assert run(["config", "check", str(path)]) == 0
    assert "good" in capsys.readouterr().out
    mesh = load_config(path, {})
    assert KEY not in repr(mesh)
    assert "tm_" not in repr(mesh)

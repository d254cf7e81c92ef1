from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from tiermesh import Explanation, Overloaded, Unauthenticated
from tiermesh.cli import run
from tiermesh.cli_app import app
from tiermesh.common.admin_servicer import AdminServicer
from tiermesh.common.cache_types import CacheStats, Holdings, Scope
from tiermesh.common.router_status import (
    ConfigStatus,
    LimitStatus,
    RouterStatus,
    TenantStatus,
    TierStatus,
    WorkerStatus,
)
from tiermesh.common.rpc import RpcServer
from tiermesh.common.types import Request
from tiermesh.status import parse, tables

COMMANDS = [
    *(["up"], ["demo"], ["edge"], ["router"], ["cloud"], ["generate"], ["score"], ["status"], ["export"], ["bench"]),
    *(["explain"],),
    *(["config", "check"], ["keys", "new"], ["keys", "init"], ["calibrate"], ["cache", "purge"], ["cache", "stats"]),
]
PAGE = """# HELP tiermesh_x_total things
tiermesh_x_total{tier="a \\"b\\"",kind="c"} 3.0
tiermesh_x_created{tier="a"} 1.7e9
tiermesh_t_seconds_bucket{le="0.1"} 2.0
tiermesh_t_seconds_count 4.0
tiermesh_t_seconds_sum 2.0
python_info{version="3"} 1.0
"""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    assert f"Example: tiermesh {' '.join(command)}" in capsys.readouterr().out


def test_all_commands_are_in_the_list() -> None:
    names = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    assert names | {group.name for group in app.registered_groups} == {command[0] for command in COMMANDS}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["generate"],
        ["generate", "x", "--tempature", "1"],
        ["generate", "x", "--quality", "perfect"],
        ["generate", "x", "--max-tokens", "many"],
        ["export", "a", "b", "--bits", "5"],
        ["config"],
        ["cache", "purge"],
        ["cache", "purge", "--all", "--tenant", "demo"],
        ["cache", "purge", "--model", "m", "--tenant", "demo"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "--help" in err


async def test_generate_prints_text_or_facts(address: str, capsys: pytest.CaptureFixture[str], answerer: Any) -> None:
    arguments = ["generate", "hello", "--address", address, "--key", "the-key"]
    assert await asyncio.to_thread(run, arguments) == 0
    assert capsys.readouterr().out == "one two three\n"
    options = ["--json", "--quality", "edge", "--stop", "a", "--stop", "b", "--deadline-ms", "5000", "--no-cache"]
    assert await asyncio.to_thread(run, [*arguments, *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["spans"] == [
        {"origin": "edge", "tokens": 2, "degraded": False},
        {"origin": "cloud", "tokens": 1, "degraded": False},
    ]
    request = answerer.requests[-1]
    assert (request.quality.value, request.stop, request.cache.value) == ("edge", ("a", "b"), "bypass")
    assert 4 < request.deadline_s <= 5


async def test_score_prints_numbers(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await asyncio.to_thread(run, ["score", "x", "--address", address, "--key", "the-key", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"token_ids": [1, 2, 3], "logprobs": [-0.5, -1.5]}


async def test_a_failure_says_when_to_try_again(
    address: str, capsys: pytest.CaptureFixture[str], answerer: Any
) -> None:
    answerer.failures = [Overloaded("no room", retry_after_s=2)]
    assert await asyncio.to_thread(run, ["generate", "x", "--address", address, "--key", "the-key"]) == 1
    assert capsys.readouterr().err == "tiermesh: no room; try again in 2.0 s [OVERLOADED]\n"


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "x", "--address", "127.0.0.1:1"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


class ScriptedRouter:
    """Remembers what operators asked."""

    def __init__(self) -> None:
        self.purged: list[Scope] = []

    def check_operator(self, metadata: Mapping[str, str]) -> None:
        if metadata.get("authorization") != "Bearer operator":
            raise Unauthenticated("this needs an operator's key")

    async def purge_cache(self, scope: Scope) -> None:
        self.purged.append(scope)

    async def explain(self, tenant: str, request: Request) -> Explanation:
        if request.max_tokens > 100:
            error = Overloaded("it would start in 9.0 s and miss its deadline", retry_after_s=4.0)
            return Explanation(False, error, request.tier, steps=("tier realtime, as asked",))
        steps = ("tier realtime, as asked", "it would wait for 3 others")
        return Explanation(True, None, request.tier, "worker", 3, 0.25, "127.0.0.1:7090", 40.0, 0.5, steps)

    async def status(self) -> RouterStatus:
        return RouterStatus(
            ConfigStatus("mesh.yaml", 1.7e9, 2, 1, "mesh.yaml:7: tiers.fast: unknown key"),
            (TierStatus("realtime", 2, 1, 100.0, 13_705.0, 40, 38, 0.05),),
            (TenantStatus("demo", 1, 2, (LimitStatus("tokens_per_minute", 150.0, 200.0),)),),
            (WorkerStatus("127.0.0.1:7090", "ejected", 0, 1, 8, 3, 0, 0.5, 2, 1.5),),
            "redis",
            1,
            12,
        )

    async def cache_stats(self) -> CacheStats:
        counts = {"lookups": {"hit": 3, "miss": 1}, "evicted": {}}
        return CacheStats("redis", "open", {"demo": Holdings(2, 700)}, counts)


async def test_operators_purge_and_look(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    router, server = ScriptedRouter(), RpcServer()
    server.add_admin(AdminServicer(router))
    address = await server.start("127.0.0.1:0")
    try:
        said = ["cache", "purge", "--tenant", "demo", "--address", address]
        assert await asyncio.to_thread(run, said) == 1
        assert "operator's key" in capsys.readouterr().err
        monkeypatch.setenv("TIERMESH_ADMIN_KEY", "operator")
        monkeypatch.setenv("TIERMESH_ROUTER", address)
        for arguments in (["--tenant", "demo"], ["--model", "toy"], ["--all"]):
            assert await asyncio.to_thread(run, ["cache", "purge", *arguments]) == 0
        assert router.purged == [Scope("tenant", "demo"), Scope("model", "toy"), Scope("all")]
        capsys.readouterr()
        assert await asyncio.to_thread(run, ["cache", "stats", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "store": "redis",
            "breaker": "open",
            "tenants": {"demo": {"entries": 2, "bytes": 700}},
            "counts": {"lookups": {"hit": 3, "miss": 1}},
        }
        assert await asyncio.to_thread(run, ["cache", "stats"]) == 0
        assert "3 hit, 1 miss" in capsys.readouterr().out
    finally:
        await server.stop(0)


@pytest.fixture
async def operated(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A router for operators."""
    server = RpcServer()
    server.add_admin(AdminServicer(ScriptedRouter()))
    address = await server.start("127.0.0.1:0")
    monkeypatch.setenv("TIERMESH_ADMIN_KEY", "operator")
    monkeypatch.setenv("TIERMESH_ROUTER", address)
    monkeypatch.setenv("COLUMNS", "200")
    yield address
    await server.stop(0)


async def test_explain_tells_the_verdict(operated: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["explain", "hello", "--tenant", "demo", "--tier", "realtime", "--max-tokens"]
    assert await asyncio.to_thread(run, [*asked, "8"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["it would wait for 3 others", "admitted"]
    assert await asyncio.to_thread(run, [*asked, "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["place"], told["starts_in_ms"], told["worker"]) == (3, 250.0, "127.0.0.1:7090")
    assert await asyncio.to_thread(run, [*asked, "800", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["admitted"], told["reason"], told["retry_after_ms"]) == (False, "OVERLOADED", 4000)
    assert told["starts_in_ms"] is None


async def test_status_shows_what_a_router_tells_its_operators(
    operated: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await asyncio.to_thread(run, ["status"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "mesh.yaml:7: tiers.fast: unknown key",
        "95.0% of 40 within 50 ms",
        "100 of 13705",
        "ejected for 1.5 s",
    ):
        assert words in shown
    assert "tokens_per_minute 150 of 200" in shown
    assert await asyncio.to_thread(run, ["status", "--router", operated, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["router"]["tiers"][0]["attained"] == 38
    assert told["ready"] is True, "one that is set aside is used where there is no other"
    monkeypatch.setenv("TIERMESH_ADMIN_KEY", "wrong")
    assert await asyncio.to_thread(run, ["status", "--router", operated]) == 1
    assert "operator's key" in capsys.readouterr().out


def test_keys_are_shown_once_with_their_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "new", "alice"]) == 0
    first = capsys.readouterr().out
    assert "tenants.alice.api_keys" in first
    assert "sha256:" in first
    assert run(["keys", "new", "alice"]) == 0
    assert capsys.readouterr().out != first


def test_a_metrics_page_is_read_without_what_is_not_ours() -> None:
    samples = parse(PAGE)
    assert [sample.name for sample in samples] == [
        "tiermesh_x_total",
        "tiermesh_t_seconds_bucket",
        "tiermesh_t_seconds_count",
        "tiermesh_t_seconds_sum",
    ]
    assert samples[0].labels == {"tier": 'a \\"b\\"', "kind": "c"}


def test_status_shows_means_and_no_buckets() -> None:
    from rich.console import Console

    from tiermesh.status import ServiceStatus

    console = Console(width=100, file=io.StringIO())
    console.print(tables([ServiceStatus("a:1", True, True, parse(PAGE)), ServiceStatus("b:2", False)]))
    shown = console.file.getvalue()
    assert "t seconds mean" in shown
    assert "0.5" in shown
    assert "bucket" not in shown
    assert "b:2: can't be reached" in shown

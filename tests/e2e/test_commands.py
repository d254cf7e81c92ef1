"""The command line against a running mesh."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tiermesh import AsyncClient, InvalidRequest, TiermeshError, Unauthenticated

COMMAND = "dim the kitchen lights to 40 %\n"


def test_generate_streams_text(mesh: dict[str, Any], shell: Any) -> None:
    done = shell.run("generate", COMMAND, "--address", mesh["edge"], "--max-tokens", "32")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize("hop", ["edge", "router", "cloud"])
def test_every_hop_answers_alike(mesh: dict[str, Any], shell: Any, hop: str) -> None:
    arguments = ("--max-tokens", "24", "--quality", "exact", "--no-cache", "--json")
    done = shell.run("generate", COMMAND, "--address", mesh[hop], *arguments)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    alone = json.loads(shell.run("generate", COMMAND, "--address", mesh["cloud"], *arguments).stdout)
    assert answer["text"] == alone["text"]
    assert sum(span["tokens"] for span in answer["spans"]) == len(answer["token_ids"])
    assert {"finish_reason", "usage", "timings", "model", "tier"} <= answer.keys()


def test_score(mesh: dict[str, Any], shell: Any) -> None:
    scores = json.loads(shell.run("score", COMMAND, "--address", mesh["edge"], "--json").stdout)
    assert len(scores["logprobs"]) == len(scores["token_ids"]) - 1
    assert all(logprob <= 0 for logprob in scores["logprobs"])


def test_status_tells_of_each_service(mesh: dict[str, Any], shell: Any) -> None:
    addresses = [part for address in mesh["metrics"].values() for part in ("--address", address)]
    services = json.loads(shell.run("status", "--json", *addresses).stdout)
    assert [service["ready"] for service in services] == [True, True, True]
    names = {sample["name"] for service in services for sample in service["samples"]}
    assert {"tiermesh_router_queue_length", "tiermesh_edge_upstream_connected", "tiermesh_cloud_slots"} <= names
    shown = shell.run("status", *addresses).stdout
    assert "queue length" in shown
    assert "bucket" not in shown


async def test_wrong_requests_are_told_apart(mesh: dict[str, Any]) -> None:
    for hop in ("edge", "router"):
        async with AsyncClient(mesh[hop], api_key="wrong") as client:
            with pytest.raises(Unauthenticated):
                await client.generate(COMMAND, max_tokens=8)
        async with AsyncClient(mesh[hop], api_key="demo-key") as client:
            wrong: list[dict[str, Any]] = [
                {"max_tokens": 0},
                {"max_tokens": 10**6},
                {"temperature": float("nan")},
                {"tier": "platinum"},
                {"top_p": 2.0},
            ]
            for options in wrong:
                with pytest.raises(TiermeshError) as caught:
                    await client.generate(COMMAND, **options)
                assert caught.value.reason in {"INVALID_ARGUMENT", "FORBIDDEN"}, options
            with pytest.raises(InvalidRequest):
                await client.generate("")
            assert (await client.generate(COMMAND, max_tokens=8)).token_ids


def test_a_wrong_key_is_one_line(mesh: dict[str, Any], shell: Any) -> None:
    done = shell.run("generate", COMMAND, "--address", mesh["edge"], "--key", "wrong")
    assert done.returncode == 1
    assert "UNAUTHENTICATED" in done.stderr
    assert len(done.stderr.splitlines()) == 1

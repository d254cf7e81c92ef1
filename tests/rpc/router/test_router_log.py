"""Clients can't make the router write lines of theirs, or secrets of anybody."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from tiermesh.common.config import NodeConfig
from tiermesh.common.errors import TiermeshError, Unauthenticated
from tiermesh.common.frames import Hello
from tiermesh.common.keys import key_hash, new_key
from tiermesh.common.telemetry import setup_logging
from tiermesh.common.types import ChatMessage, Request
from tiermesh.v1 import inference_pb2_grpc


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Logs as a router's main sets them up, at every level; reads what came on stderr."""
    handlers, level = logging.root.handlers[:], logging.root.level
    with (tmp_path / "stderr").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        setup_logging("router", "debug")
        yield lambda: (tmp_path / "stderr").read_text(encoding="utf-8")
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


HOSTILE = [
    '\n{"event":"config_reloaded"}\n',
    "\r\nred",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x00\x08\x7f",
    "\u2028\x9b2J",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
async def test_whatever_clients_send_a_log_line_is_one_line_and_tells_no_secret(
    toy: Any, log: Any, start_worker: Any, start_router: Any, hostile: str
) -> None:
    """Every way to fail, with hostile ids, names and tiers, and a prompt and keys that must appear nowhere."""
    key, wrong, token, prompt = new_key(), new_key(), new_key(), "my secret prompt"
    worker = await start_worker(stop_before=2)
    tenants = (toy.tenant("demo", key_hashes=(key_hash(key),), tiers=("standard",), requests_per_minute=20),)
    nodes = (NodeConfig("shop", key_hash("node-key"), ("demo",)),)
    router = await start_router(worker, tenants=tenants, worker_token=token, nodes=nodes)
    asked = Request(f"{prompt} {hostile}", 6, request_id=f"id {hostile}")
    changes: list[dict[str, Any]] = [
        {"tier": hostile},
        {"tier": "batch"},
        {"model": hostile},
        {"request_id": hostile * 100},
        {"tier": hostile * 10**5},
        {"prompt": (ChatMessage(hostile, prompt),), "max_tokens": 0},
        {"stop": (hostile * 200,)},
        {"deadline_s": 0.05},
        {"prompt": f"poison {prompt}"},
    ]
    for change in changes:
        with pytest.raises(TiermeshError) as caught:
            await router.client.events(replace(asked, **change), key)
        assert caught.value.reason != "INTERNAL"
    with pytest.raises(Unauthenticated):
        await router.client.events(asked, wrong)
    agent = [("grpc.primary_user_agent", prompt)]  # gRPC itself lets no control character into metadata
    async with grpc.aio.insecure_channel(router.address, options=agent) as chan:
        with pytest.raises(Unauthenticated):
            await toy.Client(inference_pb2_grpc.InferenceServiceStub(chan)).events(asked, wrong)
    with pytest.raises(Unauthenticated):
        router.service.connect(Hello(hostile), {"authorization": f"Bearer {wrong}"}, lambda _: None)
    broken = router.service._core.parts.dispatcher
    broken.answer, whole = _defect(prompt, key), broken.answer
    with pytest.raises(TiermeshError, match="log has the details"):
        await router.client.events(asked, key)
    broken.answer = whole
    running, seen = router.client.begin(asked, key)
    await toy.until(lambda: len(seen) > 1)
    await worker.kill()
    await toy.until(lambda: "worker_lost" in log())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    told = log()
    lines = [json.loads(line) for line in told.splitlines()]
    assert {"refused", "defect", "worker_lost", "link_down"} <= {line["event"] for line in lines}
    assert "config_reloaded" not in {line["event"] for line in lines}
    assert all(character == "\n" or " " <= character <= "~" for character in told)
    assert all(len(line) < 4000 for line in told.splitlines())
    for secret in (key, wrong, token, prompt, key_hash(key)):
        assert secret not in told


def _defect(prompt: str, key: str) -> Any:
    """A dispatcher with a bug that quotes all it has."""

    def answer(work: Any) -> Any:
        raise ValueError(f"{prompt} {key} {work!r}")

    return answer

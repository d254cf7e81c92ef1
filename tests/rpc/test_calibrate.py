"""`tiermesh calibrate` against a real worker, and the edge node that uses what it wrote."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from tiermesh import AsyncClient, Retry
from tiermesh.common.config import default_mesh
from tiermesh.common.frames import Policy, TenantPolicy, TierPolicy
from tiermesh.common.inference_servicer import InferenceServicer
from tiermesh.common.keys import key_hash, salted_hash
from tiermesh.common.model_dir import digests
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.types import Quality, Sampling
from tiermesh.edge.calibration_file import FILE, read_calibration, write_calibration
from tiermesh.edge.node import EdgeNode
from tiermesh.edge.score_labeller import ScoreLabeller
from tiermesh.edge.service import EdgeService

NOWHERE = "127.0.0.1:9"
SALT = b"salt of one node"
PROMPTS = [f"set lamp {i} to {i * 7 % 100} percent" for i in range(220)]
# Random weights agree with their quantized twin on about nine tokens in ten, so the bound is a loose one.
TENANT = TenantPolicy("demo", (salted_hash(SALT, key_hash("demo-key")),), ("standard",), Quality.BOUNDED, delta=0.5)
POLICY = Policy((TENANT,), (TierPolicy("standard", 0.2, 30.0),), valid_s=1000.0, salt=SALT)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's model, an edge made of it, and one of another tokenizer."""
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_model

    root = tmp_path_factory.mktemp("calibrate")
    export_edge(write_random_model(root / "cloud", max_length=256), root / "edge", bits=8)
    export_edge(write_random_model(root / "other", max_length=256, vocab=288), root / "stranger", bits=8)
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p, "kind": "x"}) + "\n" for p in PROMPTS))
    return root


@pytest.fixture(scope="module")
def worker(models: Path) -> Iterator[str]:
    command = [sys.executable, "-P", "-m", "tiermesh.cloud.main", "--model", str(models / "cloud")]
    command += ["--listen", "127.0.0.1:0", "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    yield next(line.split()[1] for line in process.stdout if line.startswith("listening "))
    process.kill()
    process.wait()
    process.stdout.close()


def calibrate(edge: Path, cloud: str, prompts: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "tiermesh.cli", "calibrate", "--edge", str(edge), "--cloud", cloud]
    command += ["--prompts", str(prompts), "--max-tokens", "4", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def calibrated(models: Path, worker: str) -> tuple[Path, dict]:
    """An edge directory with calibration.json, and what the command printed."""
    directory = Path(shutil.copytree(models / "edge", models / "calibrated"))
    done = calibrate(directory, worker, models / "prompts.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    return directory, json.loads(done.stdout)


def test_the_command_writes_what_it_prints(models: Path, calibrated: tuple[Path, dict]) -> None:
    directory, told = calibrated
    found = read_calibration(directory)
    assert found
    assert (found.edge, found.cloud_model) == (digests(models / "edge"), digests(models / "cloud").model)
    assert (found.prompts, told["prompts"], told["epsilon"]) == (220, 220, 0.05)
    assert [row["class"] for row in told["classes"]] == ["greedy", "T<=0.9"]
    for row, measured in zip(told["classes"], found.classes, strict=True):
        assert row["tested_prompts"] == measured.tested == 147
        assert [bound["delta"] for bound in row["bounds"]] == [0.01, 0.02, 0.05, 0.1]
        for bound in row["bounds"]:
            assert bound["threshold"] == measured.threshold(bound["delta"], 0.05)
        shares = [bound["share_units_alone"] for bound in row["bounds"]]
        assert shares == sorted(shares), "a looser bound trusts no less"
        assert measured.threshold(TENANT.delta, 0.05) is not None
    assert (directory / FILE).stat().st_size < 15_000


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=9)], ids=["greedy", "warm"])
async def test_both_labellers_say_the_same(models: Path, worker: str, sampling: Sampling) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from tiermesh.training.calibrate import TorchLabeller

    ids = [0, *range(40, 80)]
    here = TorchLabeller(LlamaForCausalLM.from_pretrained(models / "cloud", dtype=torch.float32))
    async with channel(worker) as mesh:
        there = await ScoreLabeller(mesh, "", "").choices(ids, 5, sampling)
    assert list(there) == list(await here.choices(ids, 5, sampling))
    assert len(there) == len(ids) - 5


@asynccontextmanager
async def node_of(directory: Path, upstream: str) -> AsyncIterator[tuple[EdgeNode, AsyncClient]]:
    config = replace(default_mesh({}).edge, model=directory, listen="127.0.0.1:0", upstream=upstream, metrics=None)
    node, server = EdgeNode.load(config), RpcServer()
    node.tenants.replace(POLICY)
    node.pace.visits_to_probe = 1_000_000
    async with channel(upstream) as plain:
        server.add_inference(InferenceServicer(EdgeService(node, plain)))
        address = await server.start("127.0.0.1:0")
        link = asyncio.create_task(node.run())
        try:
            assert await node.upstream.link.wait_connected(10)
            async with AsyncClient(address, api_key="demo-key", retry=Retry(attempts=1)) as client:
                yield node, client
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)
            await server.stop(0)
            node.close()


async def alone_units(client: AsyncClient, **options: object) -> int:
    answers = [
        await client.generate(prompt, max_tokens=4, cache="bypass", **options)  # type: ignore[arg-type]
        for prompt in PROMPTS[:12]
    ]
    return sum(answer.usage.alone for answer in answers)


async def test_the_edge_shows_alone_what_was_calibrated_and_asks_about_the_rest(
    calibrated: tuple[Path, dict], worker: str
) -> None:
    async with node_of(calibrated[0], worker) as (node, client):
        assert await alone_units(client) > 0
        assert await alone_units(client, temperature=0.8, seed=3) > 0
        assert await alone_units(client, delta=1e-6) == 0, "no number of prompts shows that"
        assert await alone_units(client, temperature=0.8, seed=3, top_p=0.5) == 0
        assert await alone_units(client, temperature=1.2, seed=3) == 0
        assert await alone_units(client, repetition_penalty=1.3) == 0
        assert b"tiermesh_edge_calibrated 1.0" in generate_latest(node.metrics.registry)


@pytest.mark.parametrize("side", ["edge", "cloud"])
async def test_with_another_model_on_either_side_everything_asks(
    calibrated: tuple[Path, dict], worker: str, tmp_path: Path, side: str
) -> None:
    directory = Path(shutil.copytree(calibrated[0], tmp_path / "edge"))
    found = read_calibration(directory)
    assert found
    changes = {"cloud": {"cloud_model": "0" * 64}, "edge": {"edge": replace(found.edge, model="0" * 64)}}
    write_calibration(directory, replace(found, **changes[side]))  # type: ignore[arg-type]
    async with node_of(directory, worker) as (node, client):
        assert await alone_units(client) == 0
        assert b"tiermesh_edge_calibrated 0.0" in generate_latest(node.metrics.registry)


async def test_an_answer_cached_under_one_calibration_is_not_given_under_another(
    calibrated: tuple[Path, dict], worker: str
) -> None:
    async with node_of(calibrated[0], worker) as (node, client):
        await client.generate(PROMPTS[0], max_tokens=4)
        assert (await client.generate(PROMPTS[0], max_tokens=4)).usage.cached
        assert node.artifact.calibration
        node.pairing._calibration = replace(node.artifact.calibration, digest="another")
        assert not (await client.generate(PROMPTS[0], max_tokens=4)).usage.cached


def test_what_can_not_be_measured_says_why(models: Path, worker: str, tmp_path: Path) -> None:
    edge, prompts = models / "edge", models / "prompts.jsonl"
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(prompts.read_text().splitlines()[:40]))
    for done, message in (
        (calibrate(models / "stranger", worker, prompts), "no pair"),
        (calibrate(edge, worker, few), "40 different prompts"),
        (calibrate(edge, worker, tmp_path / "none.jsonl"), "can't be read"),
        (calibrate(edge, NOWHERE, prompts), NOWHERE),
        (calibrate(models / "cloud", worker, prompts), "no edge directory"),
    ):
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (edge / FILE).exists()
    assert calibrate(edge, worker, prompts, "--epsilon", "2").returncode == 2
    assert calibrate(edge, worker, prompts, "--temperature", "9").returncode == 2


def test_ctrl_c_writes_nothing(models: Path, worker: str, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"prompt": f"lamp {i}"}) + "\n" for i in range(50_000)))
    command = [sys.executable, "-P", "-m", "tiermesh.edge.calibrate", "--edge", str(models / "edge")]
    command += ["--cloud", worker, "--prompts", str(many)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr
    assert "labelling 100000 answers" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    told = process.stderr.read()
    assert process.wait() == 130
    assert "nothing was written" in told
    assert not (models / "edge" / FILE).exists()
    process.stderr.close()

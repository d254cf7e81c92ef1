"""A configuration that changes under a running router: what comes into force, and what is kept out."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tiermesh.common import wire
from tiermesh.common.config import MeshConfig, load_config
from tiermesh.common.errors import ConfigError
from tiermesh.common.keys import key_hash
from tiermesh.common.router_status import ConfigStatus
from tiermesh.common.rpc import channel
from tiermesh.common.types import CacheControl, Request
from tiermesh.router import reload
from tiermesh.router.reload import Reloader
from tiermesh.v1 import inference_pb2_grpc


def tenant(name: str, *keys: str, extra: str = "") -> str:
    hashes = ", ".join(f'"{key_hash(key)}"' for key in keys)
    return f"  {name}: {{api_keys: [{hashes}]{extra}}}\n"


def put(path: Path, text: str) -> None:
    """As careful tools do: a new file takes the name of the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


class Taker:
    """Remembers what was put in force; refuses meshes named so."""

    def __init__(self) -> None:
        self.config = ConfigStatus()
        self.names: list[str] = []

    def reload(self, mesh: MeshConfig) -> None:
        if mesh.name == "impossible":
            raise ConfigError("mesh.name changes only with a restart")
        if mesh.name == "odd":
            raise RuntimeError("unforeseen")
        self.names.append(mesh.name)


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[tuple[Taker, Reloader]]:
    taker = Taker()
    reloader = Reloader(load_config(path, {}).files, lambda: load_config(path, {}), taker, look_s=0.01)
    task = asyncio.create_task(reloader.run())
    try:
        yield taker, reloader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def named(name: str) -> str:
    return f"mesh: {{name: {name}}}\n"


async def test_a_file_that_is_replaced_is_taken(toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(named("one"))
    async with watching(path) as (taker, _):
        assert taker.config.source == str(path)
        put(path, named("two"))
        await toy.until(lambda: taker.names == ["two"])
        assert taker.config.taken == 1
        path.write_text(named("six"))  # in place, as long as before, and perhaps within the same tick of the clock
        os.utime(path, (0, 0))
        await toy.until(lambda: taker.names == ["two", "six"])


async def test_a_link_that_moves_is_followed(toy: Any, tmp_path: Path) -> None:
    """A config map of Kubernetes: mesh.yaml → ..data/mesh.yaml, and ..data → a folder that changes."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mesh.yaml").write_text(named(name))
    data, path = tmp_path / "..data", tmp_path / "mesh.yaml"
    data.symlink_to("one")
    path.symlink_to("..data/mesh.yaml")
    async with watching(path) as (taker, _):
        new = tmp_path / "..data_tmp"
        new.symlink_to("two")
        new.replace(data)
        await toy.until(lambda: taker.names == ["two"])


async def test_a_fault_keeps_what_was_and_is_told_until_it_is_mended(toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(named("one"))
    async with watching(path) as (taker, reloader):
        put(path, "tiers: {fast: {ttft_ms: -5, deadline_ms: 100}}\n")
        await toy.until(lambda: bool(taker.config.fault))
        assert "mesh.yaml:1: tiers.fast.ttft_ms: should be greater than 0" in taker.config.fault
        assert (taker.names, taker.config.taken, taker.config.kept) == ([], 0, 1)
        for cut, why in (("# a comm", "says nothing"), ("tiers: {fast: {ttft_ms", "no valid YAML")):
            put(path, cut)
            await toy.until(lambda why=why: why in taker.config.fault)
        put(path, named("impossible"))
        await toy.until(lambda: "only with a restart" in taker.config.fault)
        put(path, named("odd"))
        await toy.until(lambda: "a defect of ours" in taker.config.fault)
        path.unlink()
        await toy.until(lambda: "can't read the configuration" in taker.config.fault)
        put(path, named("one"))
        await toy.until(lambda: not taker.config.fault)
        assert taker.names == ["one"]
        reloader.ask()
        await toy.until(lambda: taker.config.taken == 2)


async def test_files_of_keys_count_too_and_one_that_was_missing_mends_a_fault(toy: Any, tmp_path: Path) -> None:
    path, keys, more = tmp_path / "mesh.yaml", tmp_path / "keys", tmp_path / "more"
    path.write_text("tenants: {a: {api_keys_file: keys}}\n")
    keys.write_text(key_hash("first") + "\n")
    async with watching(path) as (taker, _):
        keys.write_text(key_hash("other") + "\n")
        await toy.until(lambda: taker.config.taken == 1)
        put(path, "tenants: {a: {api_keys_file: more}}\n")
        await toy.until(lambda: "tenants.a.api_keys_file: can't read it" in taker.config.fault)
        more.write_text(key_hash("first") + "\n")
        await toy.until(lambda: taker.config.taken == 2)


async def test_what_is_half_written_is_not_taken(tmp_path: Path) -> None:
    """Two looks must agree. A file that differs at each of them is never read."""
    path = tmp_path / "mesh.yaml"
    path.write_text(named("one"))
    looks = 0

    def grows() -> MeshConfig:
        raise AssertionError("read while it grew")

    taker = Taker()
    reloader = Reloader([path], grows, taker, look_s=0.0)
    real = reload.fingerprint

    def fingerprint(files: Any) -> str:
        nonlocal looks
        looks += 1
        path.write_text(named("n" * looks))
        return real(files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "fingerprint", fingerprint)
        task = asyncio.create_task(reloader.run())
        async with asyncio.timeout(10):
            while looks < 20:  # noqa: ASYNC110 - the looks are in a thread
                await asyncio.sleep(0.002)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(stub: Any, key: str, prompt: str) -> grpc.StatusCode:
    request = Request(prompt, 6, cache=CacheControl.BYPASS)
    try:
        async for _ in stub.Generate(
            wire.request_to(request), metadata=[("authorization", f"Bearer {key}")], timeout=10
        ):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_under_load_keys_tenants_and_limits_change_and_nobody_else_notices(
    toy: Any, start_worker: Any, stack: AsyncExitStack, tmp_path: Path
) -> None:
    """A real process. One tenant's load never fails, whatever becomes of the others and of the file."""
    worker = await start_worker(step_s=0.002)
    path = tmp_path / "mesh.yaml"
    wide = ", limits: {requests_per_minute: 100000, tokens_per_minute: 100000000}"
    steady = tenant("steady", "steady-key", extra=wide)
    tail = f'router: {{workers: ["{worker.address}"]}}\n'
    path.write_text(f"tenants:\n{steady}{tenant('old', 'old-key')}{tenant('rolls', 'first-key')}{tail}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tiermesh.router.main", "--config", str(path)),
        *("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=stack.enter_context((tmp_path / "log").open("w")),
    )

    async def end() -> None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    stack.push_async_callback(end)
    assert process.stdout is not None
    address = dict([(await process.stdout.readline()).decode().split() for _ in range(2)])["listening"]
    stub = inference_pb2_grpc.InferenceServiceStub(await stack.enter_async_context(channel(address)))
    seen: list[grpc.StatusCode] = []

    async def load(number: int) -> None:
        while True:
            seen.append(await ask(stub, "steady-key", f"load {number} {len(seen)}"))

    async def comes_to(key: str, code: grpc.StatusCode) -> None:
        async with asyncio.timeout(20):
            while await ask(stub, key, f"{key} {len(seen)}") is not code:  # noqa: ASYNC110 - it asks
                await asyncio.sleep(0.02)

    for key in ("steady-key", "old-key", "first-key"):
        await comes_to(key, grpc.StatusCode.OK)
    tasks = [asyncio.create_task(load(number)) for number in range(4)]
    put(path, f"tenants:\n{steady}{tenant('old', 'old-key')}    weight: heavy\n{tail}")
    log = tmp_path / "log"
    await toy.until(lambda: "config_kept" in log.read_text(), 20)
    assert "mesh.yaml:" in log.read_text()
    assert await ask(stub, "old-key", "still") is grpc.StatusCode.OK
    tight = ", limits: {requests_per_minute: 1}"
    put(path, f"tenants:\n{steady}{tenant('rolls', 'second-key')}{tenant('new', 'new-key', extra=tight)}{tail}")
    await comes_to("second-key", grpc.StatusCode.OK)
    for key in ("old-key", "first-key"):
        assert await ask(stub, key, "gone") is grpc.StatusCode.UNAUTHENTICATED
    assert await ask(stub, "new-key", "one") is grpc.StatusCode.OK
    assert await ask(stub, "new-key", "two") is grpc.StatusCode.RESOURCE_EXHAUSTED
    for task in tasks:
        assert not task.done()
        task.cancel()
    assert set(seen) == {grpc.StatusCode.OK}
    assert len(seen) > 20
    for key in ("steady-key", "old-key", "first-key", "second-key", "new-key"):
        assert key not in log.read_text()
        assert key_hash(key).removeprefix("sha256:") not in log.read_text()
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0

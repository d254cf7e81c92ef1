"""A router process and an edge node, while the mesh's secret is made, changed, spoilt and lost: clients go on."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tiermesh import AsyncClient, Retry, Unauthenticated
from tiermesh.common.config import default_mesh
from tiermesh.common.inference_servicer import InferenceServicer
from tiermesh.common.keys import key_hash, salted_hash
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.secret import write_secret
from tiermesh.edge.node import EdgeNode
from tiermesh.edge.service import EdgeService


@dataclass
class RouterProcess:
    """A router with its configuration, and the lines of its log."""

    process: asyncio.subprocess.Process
    address: str
    log: list[str] = field(default_factory=list)
    reading: asyncio.Task[None] | None = None

    async def reload(self) -> None:
        """SIGHUP, until the log says what became of it."""
        seen = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        await eventually(lambda: any("config_" in line for line in self.log[seen:]))

    def said(self, event: str) -> list[str]:
        """Lines with this event."""
        return [line for line in self.log if f'"{event}"' in line]

    async def end(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        await self.process.wait()
        if self.reading:
            await self.reading


@dataclass
class Place:
    """The router's folder and the state of the node."""

    folder: Path

    def write(self, secret_file: str | None, key: str = "demo-key", listen: str = "127.0.0.1:0") -> Path:
        """The mesh: one tenant, one node, no worker."""
        values: dict[str, Any] = {
            "tenants": {"demo": {"api_keys": [key_hash(key)], "quality": {"mode": "edge"}}},
            "router": {
                "listen": listen,
                "metrics": None,
                "workers": ["127.0.0.1:9"],
                "nodes": {"shop": {"key": key_hash("node-key"), "tenants": ["demo"]}},
            },
        }
        if secret_file:
            values["mesh"] = {"secret_file": secret_file}
        path = self.folder / "mesh.yaml"
        path.write_text(json.dumps(values))
        return path

    def kept(self) -> dict[str, Any]:
        """The policy on the node's disk."""
        policy: dict[str, Any] = json.loads((self.folder / "state" / "policy.json").read_text())["policy"]
        return policy


Start = Callable[[Path], Awaitable[RouterProcess]]


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not check():  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(0.01)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("one.secret", "two.secret"):
        write_secret(tmp_path / name)
    return Place(tmp_path)


@pytest.fixture
def start(stack: AsyncExitStack) -> Start:
    """Starts a router process and waits until it listens."""

    async def start(config: Path) -> RouterProcess:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-P", "-m", "tiermesh.router.main", "--config", str(config)]
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        assert process.stdout is not None
        assert process.stderr is not None
        router, errors = RouterProcess(process, ""), process.stderr

        async def read() -> None:
            async for line in errors:
                router.log.append(line.decode())

        router.reading = asyncio.create_task(read())
        stack.push_async_callback(router.end)
        words = (await process.stdout.readline()).decode().split()
        assert words, router.log
        router.address = words[1]
        return router

    return start


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiermesh.training.export_edge import export_edge
    from tiermesh.training.random_model import write_random_model

    root = tmp_path_factory.mktemp("model")
    export_edge(write_random_model(root / "hf", hidden=64, max_length=256), root / "edge", bits=8)
    return root / "edge"


@asynccontextmanager
async def edge(model: Path, place: Place, upstream: str) -> AsyncIterator[EdgeNode]:
    """A node of this process under that router; `node.address` is where clients ask it."""
    config = replace(
        default_mesh({}).edge, model=model, upstream=upstream, name="shop", node_key="node-key", metrics=None
    )
    node, server = EdgeNode.load(replace(config, state_dir=place.folder / "state")), RpcServer()
    async with channel(upstream) as plain:
        server.add_inference(InferenceServicer(EdgeService(node, plain)))
        node.address = await server.start("127.0.0.1:0")  # type: ignore[attr-defined]
        link = asyncio.create_task(node.run())
        try:
            await asyncio.wait_for(node.tenants.known.wait(), 10)
            yield node
        finally:
            link.cancel()
            with suppress(asyncio.CancelledError):
                await link
            await server.stop(0)
            node.close()


@asynccontextmanager
async def asking(node: EdgeNode, key: str = "demo-key") -> AsyncIterator[list[str]]:
    """A client that asks all the while; the list shows its answers, and any error ends the test."""
    texts: list[str] = []
    done = asyncio.Event()

    async def ask() -> None:
        address: str = node.address  # type: ignore[attr-defined]
        async with AsyncClient(address, api_key=key, retry=Retry(attempts=1)) as client:
            while not done.is_set():
                texts.append((await client.generate("x", max_tokens=4, cache="bypass")).text)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask())
        await eventually(lambda: bool(texts))
        yield texts
        answered = len(texts)
        await eventually(lambda: len(texts) > answered + 2)
        done.set()


async def test_clients_go_on_while_the_secret_changes(start: Start, place: Place, model: Path) -> None:
    router = await start(place.write("one.secret"))
    salts: list[str] = []
    async with edge(model, place, router.address) as node, asking(node):
        for file in ("two.secret", "one.secret", None):
            salts.append(place.kept()["salt"])
            place.write(file)
            await router.reload()
            await eventually(lambda: place.kept()["salt"] != salts[-1])
            (told,) = place.kept()["tenants"]
            assert told["key_hashes"] == [salted_hash(bytes.fromhex(place.kept()["salt"]), key_hash("demo-key"))]
        salts.append(place.kept()["salt"])
    assert (len(set(salts)), salts[0]) == (3, salts[2])
    assert len(router.said("config_reloaded")) == 3
    assert len(router.said("mesh_secret_random")) == 1
    for name in ("one.secret", "two.secret"):
        assert (place.folder / name).read_text().strip() not in "".join(router.log)


async def test_a_secret_that_went_bad_changes_nothing(start: Start, place: Place, model: Path) -> None:
    router = await start(place.write("one.secret"))
    async with edge(model, place, router.address) as node, asking(node):
        before = place.kept()
        (place.folder / "one.secret").chmod(0o644)
        place.write("one.secret", key="other-key")
        await router.reload()
        place.write("none.secret", key="other-key")
        await router.reload()
        readable, missing = router.said("config_kept")
        assert "mesh.yaml:1: mesh.secret_file" in readable
        assert "chmod 600" in readable
        assert "tiermesh keys init" in missing
        assert place.kept() == before
    assert not router.said("config_reloaded")
    assert not router.said("mesh_secret_random")


async def test_routers_that_share_a_secret_are_one_to_a_node(start: Start, place: Place, model: Path) -> None:
    first = await start(place.write("one.secret"))
    async with edge(model, place, first.address) as node, asking(node):
        before = place.kept()
        await first.end()
        await eventually(lambda: not node.upstream.connected)
        (place.folder / "one.secret").rename(place.folder / "copied.secret")
        second = await start(place.write("copied.secret", listen=first.address))
        await eventually(lambda: node.upstream.connected)
        await eventually(lambda: bool(second.said("node_up")))
        assert place.kept() == before
        await second.end()
        await eventually(lambda: not node.upstream.connected)
        await start(place.write("two.secret", listen=first.address))
        await eventually(lambda: place.kept()["salt"] != before["salt"])


async def test_what_was_kept_opens_the_door_without_a_router(start: Start, place: Place, model: Path) -> None:
    router = await start(place.write("one.secret"))
    async with edge(model, place, router.address):
        pass
    await router.end()
    async with edge(model, place, router.address) as node, asking(node):
        assert not node.upstream.connected
        with pytest.raises(Unauthenticated):
            node.tenants.authenticate(place.kept()["tenants"][0]["key_hashes"][0])


async def test_a_router_does_not_start_without_its_secret(place: Place) -> None:
    for name, told in (("none.secret", "tiermesh keys init"), ("one.secret", "chmod 600")):
        (place.folder / "one.secret").chmod(0o604)
        command = [sys.executable, "-P", "-m", "tiermesh.router.main", "--config", str(place.write(name))]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, said = await process.communicate()
        assert process.returncode == 1
        assert said.decode().startswith("router: mesh.yaml:1: mesh.secret_file: ")
        assert told in said.decode()
        assert len(said.splitlines()) == 1

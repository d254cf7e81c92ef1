"""Operators: who they are, what a purge takes, what the cache tells of itself; over real gRPC, on both stores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tiermesh.common.admin_stub import cache_stats, purge_cache
from tiermesh.common.cache_types import Holdings, Scope
from tiermesh.common.config import default_mesh
from tiermesh.common.errors import Forbidden, InvalidRequest, ModelNotFound, Unauthenticated, Unavailable
from tiermesh.common.keys import key_hash
from tiermesh.common.types import Request
from tiermesh.v1 import admin_pb2, admin_pb2_grpc

Share = Callable[..., Awaitable[Any]]
DIGEST = "0123456789abcdef" * 4


async def cached(router: Any, key: str = "demo-key") -> bool:
    """Whether an answer came from the cache; afterwards it is there."""
    events = await router.client.events(Request("hello", 6), key)
    return bool(events[-1].usage.cached)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
async def router(request: pytest.FixtureRequest, toy: Any, start_worker: Any, start_router: Any, share: Share) -> Any:
    tenants = (toy.tenant("demo"), toy.tenant("other"))
    start = share if request.param == "redis" else start_router
    return await start(await start_worker(), tenants=tenants)


async def test_a_purge_takes_one_tenant_and_leaves_the_other(router: Any) -> None:
    for key in ("demo-key", "other-key"):
        assert not await cached(router, key)
        assert await cached(router, key)
    await purge_cache(router.address, Scope("tenant", "demo"), "")
    assert await cached(router, "other-key")
    assert not await cached(router)
    assert await cached(router)


@pytest.mark.parametrize("scope", [Scope("all"), Scope("model", "toy")])
async def test_a_purge_takes_all_of_a_model_or_everything(router: Any, scope: Scope) -> None:
    await cached(router)
    await purge_cache(router.address, Scope("model", DIGEST), "")
    assert await cached(router)
    await purge_cache(router.address, scope, "")
    assert not await cached(router)


async def test_what_does_not_exist_is_not_purged(router: Any) -> None:
    with pytest.raises(InvalidRequest, match="there is no tenant 'dem'; there are demo, other"):
        await purge_cache(router.address, Scope("tenant", "dem"), "")
    with pytest.raises(ModelNotFound, match="there is toy"):
        await purge_cache(router.address, Scope("model", "llama"), "")
    with pytest.raises(InvalidRequest, match="scope"):
        await purge_cache(router.address, Scope("tenant", ""), "")
    with pytest.raises(InvalidRequest, match="Unicode"):
        await purge_cache(router.address, Scope("tenant", "\ud800"), "")


async def test_nothing_asked_is_nothing_purged(router: Any) -> None:
    from tiermesh.common.rpc import channel

    await cached(router)
    async with channel(router.address) as chan:
        stub = admin_pb2_grpc.AdminServiceStub(chan)
        for message in (admin_pb2.PurgeCacheRequest(), admin_pb2.PurgeCacheRequest(everything=False)):
            with pytest.raises(Exception, match="name a tenant or a model, or set everything"):
                await stub.PurgeCache(message)
    assert await cached(router)


async def test_the_stats_tell_what_happened(router: Any) -> None:
    for _ in range(3):
        await cached(router)
    stats = await cache_stats(router.address, "")
    assert stats.breaker == "closed"
    assert stats.counts["lookups"] == {"miss": 1, "hit": 2}
    assert stats.counts["leases"]["led"] == 1
    assert stats.tenants["demo"].entries == 1
    assert stats.tenants["demo"].bytes > 20
    assert stats.tenants["other"] == Holdings(0, 0)
    assert stats.store == ("redis" if router.mesh.cache.shared else "memory")
    assert router.sample("cache_entries") == 1
    assert router.sample("cache_bytes") == stats.tenants["demo"].bytes
    assert [router.sample("cache_breaker", state=state) for state in ("closed", "open", "half_open")] == [1, 0, 0]


async def test_quotas_of_the_configuration_hold(toy: Any, start_worker: Any, start_router: Any, share: Share) -> None:
    tenants = (toy.tenant("demo", cache_max_entries=2),)
    for start in (start_router, share):
        router = await start(await start_worker(), tenants=tenants)
        for prompt in "abcd":
            await router.client.events(Request(prompt, 4))
        stats = await cache_stats(router.address, "")
        assert stats.tenants["demo"].entries == 2
        assert stats.counts["evicted"] == {"quota": 2}


async def test_operators_show_a_key_where_keys_are_configured(toy: Any, start_worker: Any, start_router: Any) -> None:
    keys = (key_hash("operator-key"), key_hash("another"))
    router = await start_router(await start_worker(), admin_keys=keys)
    for wrong in ("", "demo-key", "operator-ke", "operator-key2"):
        for call in (purge_cache(router.address, Scope("all"), wrong), cache_stats(router.address, wrong)):
            with pytest.raises(Unauthenticated, match="operator's key"):
                await call
    for right in ("operator-key", "another"):
        await purge_cache(router.address, Scope("all"), right)
        assert (await cache_stats(router.address, right)).store == "memory"


async def test_beyond_loopback_nobody_is_an_operator_by_default(toy: Any, start_worker: Any, start_router: Any) -> None:
    mesh = default_mesh({})
    assert mesh.router.admin_open
    assert not replace(mesh.router, listen="0.0.0.0:7080").admin_open
    router = await start_router(await start_worker(), listen="0.0.0.0:7080", insecure=True)  # as it believes
    with pytest.raises(Forbidden, match=r"router\.admin_keys"):
        await purge_cache(router.address, Scope("all"), "demo-key")


@pytest.mark.redis
async def test_a_purge_that_is_not_confirmed_says_so(start_worker: Any, share: Share, server: Any) -> None:
    router = await share(await start_worker())
    server.kill()
    with pytest.raises(Unavailable, match="did not confirm"):
        await purge_cache(router.address, Scope("all"), "")
    with pytest.raises(Unavailable, match="does not answer"):
        await cache_stats(router.address, "")


async def test_nobody_there_is_told_as_such() -> None:
    with pytest.raises(Unavailable, match="is a router running there"):
        await asyncio.wait_for(cache_stats("127.0.0.1:9", ""), 8)


async def test_a_reload_that_moves_the_cache_is_refused(toy: Any, start_worker: Any, share: Share) -> None:
    from tiermesh.common.errors import ConfigError
    from tiermesh.common.secret import Secret

    router = await share(await start_worker())
    for changed in (
        replace(router.mesh, cache=replace(router.mesh.cache, budget_s=1.0)),
        replace(router.mesh, secret=Secret(bytes(32))),
    ):
        with pytest.raises(ConfigError, match="restart"):
            router.service.reload(changed)
    router.service.reload(replace(router.mesh, tenants=(toy.tenant("new"),)))

"""Commands for operators on a router's result cache: purge, stats."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_ask import AsJson

if TYPE_CHECKING:
    from tiermesh.common.cache_types import CacheStats, Scope

Address = Annotated[str, typer.Option(envvar="TIERMESH_ROUTER", help="The router, as host:port.")]
Key = Annotated[
    str,
    typer.Option(envvar="TIERMESH_ADMIN_KEY", help="An operator's key; see router.admin_keys.", show_default=False),
]

ROUTER_ADDRESS = "127.0.0.1:7080"


def add_to(app: typer.Typer) -> None:
    """Puts the commands of this file into the application."""
    cache = typer.Typer(help="Look at a router's result cache, and forget what is in it.")
    cache.command()(purge)
    cache.command()(stats)
    app.add_typer(cache, name="cache")


def purge(
    tenant: Annotated[str | None, typer.Option(help="All of one tenant.")] = None,
    model: Annotated[str | None, typer.Option(help="All of one model: the id served now, or any digest.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of it.")] = False,
    address: Address = ROUTER_ADDRESS,
    key: Key = "",
) -> None:
    """Forget cached answers, at once and at every router that shares the store.

    Edge nodes keep what they have until its time is over.
    Example: tiermesh cache purge --tenant demo
    """
    from tiermesh.common.admin_stub import purge_cache

    asyncio.run(purge_cache(address, _scope(tenant, model, everything), key))
    print("purged")


def stats(address: Address = ROUTER_ADDRESS, key: Key = "", as_json: AsJson = False) -> None:
    """What tenants have in the cache, and how it fares at one router.

    Example: tiermesh cache stats --json
    """
    from tiermesh.common.admin_stub import cache_stats

    found = asyncio.run(cache_stats(address, key))
    if as_json:
        print(json.dumps(_facts(found)))
        return
    print(f"{found.store}, breaker {found.breaker}")
    for tenant, held in found.tenants.items():
        print(f"{tenant:<24} {held.entries:>9} entries {held.bytes:>12} bytes")
    for what, outcomes in found.counts.items():
        print(f"{what:<24} " + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))


def _scope(tenant: str | None, model: str | None, everything: bool) -> Scope:
    from tiermesh.common.cache_types import Scope

    if (tenant is not None) + (model is not None) + everything != 1:
        raise typer.BadParameter("give one of --tenant, --model and --all")
    if tenant is not None:
        return Scope("tenant", tenant)
    return Scope("all") if model is None else Scope("model", model)


def _facts(stats: CacheStats) -> dict[str, object]:
    return {
        "store": stats.store,
        "breaker": stats.breaker,
        "tenants": {name: {"entries": held.entries, "bytes": held.bytes} for name, held in stats.tenants.items()},
        "counts": {what: dict(outcomes) for what, outcomes in stats.counts.items()},
    }

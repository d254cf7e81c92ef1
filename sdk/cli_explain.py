"""The explain command: a dry run of a tenant's request at a router."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tiermesh.common.explanation import Explanation

from .blocking import Client
from .cli_ask import AsJson
from .cli_cache import ROUTER_ADDRESS, Address, Key
from .requests import DEFAULT_MAX_TOKENS, GenerateOptions


def add_to(app: typer.Typer) -> None:
    """Puts the command of this file into the application."""
    app.command()(explain)


def explain(
    prompt: Annotated[str, typer.Argument(help="The text that would be continued.")],
    tenant: Annotated[str, typer.Option(help="Who would ask.")] = "demo",
    tier: Annotated[str, typer.Option(help="Latency class; the tenant's default when left out.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Length of the answer at most, in tokens.")] = DEFAULT_MAX_TOKENS,
    deadline_ms: Annotated[int | None, typer.Option(help="Milliseconds until the answer must be complete.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Of a request past the cache.")] = False,
    address: Address = ROUTER_ADDRESS,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Say what a router would do with a request now: tier, place, start, worker, or why it would be refused.

    A dry run for operators: nothing is asked, taken or counted. Exit status 0 whatever the verdict is.
    Example: tiermesh explain "dim the lights" --tenant demo --tier realtime
    """
    options: GenerateOptions = {"tier": tier, "max_tokens": max_tokens, "cache": "bypass" if no_cache else "use"}
    if deadline_ms is not None:
        options["deadline_s"] = deadline_ms / 1000
    with Client(address, api_key=key) as client:
        told = client.explain(prompt, tenant=tenant, **options)
    if as_json:
        print(json.dumps(explanation_facts(told)))
        return
    for step in told.steps:
        print(step)
    print("admitted" if told.error is None else f"refused: {told.error.message}")


def explanation_facts(told: Explanation) -> dict[str, object]:
    """A verdict as plain data; times in milliseconds."""
    error = told.error
    return {
        "admitted": told.admitted,
        "tier": told.tier,
        "source": told.source,
        "place": told.place,
        "starts_in_ms": None if told.starts_in_s is None else round(told.starts_in_s * 1000, 3),
        "worker": told.worker,
        "cost": told.cost,
        "service_ms": round(told.service_s * 1000, 3),
        "reason": error.reason if error else None,
        "message": error.message if error else None,
        "retry_after_ms": round(error.retry_after_s * 1000) if error and error.retry_after_s else None,
        "steps": list(told.steps),
    }

"""All commands, put together."""

from __future__ import annotations

import typer

from . import cli_admin, cli_ask, cli_cache, cli_explain, cli_mesh, cli_status

app = typer.Typer(
    name="tiermesh",
    help="LLM inference in tiers: a small model at the edge, the full one in the cloud.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
cli_mesh.add_to(app)
cli_ask.add_to(app)
cli_status.add_to(app)
cli_explain.add_to(app)
cli_admin.add_to(app)
cli_cache.add_to(app)

"""Commands for operators and model owners: config check, keys new, keys init, export, calibrate, bench."""

from __future__ import annotations

import os
import sys
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer

from .cli_ask import DEMO_KEY, AsJson, Key


class Bits(IntEnum):
    """Widths of quantized weights."""

    FOUR = 4
    EIGHT = 8


def add_to(app: typer.Typer) -> None:
    """Puts the commands of this file into the application."""
    config, keys = (
        typer.Typer(help="Work on configuration files."),
        typer.Typer(help="Make API keys, and the mesh's secret."),
    )
    config.command("check")(check_config)
    keys.command("new")(new_api_key)
    keys.command("init")(init_secret)
    config.callback()(_group)
    app.add_typer(config, name="config")
    app.add_typer(keys, name="keys")
    app.command()(export)
    app.command()(calibrate)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


def _group() -> None:
    """Makes typer keep the name of a group's only command."""


def check_config(file: Annotated[Path, typer.Argument(help="The mesh's YAML.")]) -> None:
    """Say what is wrong with a configuration: the path in the file, and the line. Keys in plain are wrong anywhere.

    Example: tiermesh config check mesh.yaml
    """
    from tiermesh.common.config import load_config
    from tiermesh.common.config_plain import plain_keys
    from tiermesh.common.errors import ConfigError

    mesh = load_config(file, with_secret=True)
    if shown := plain_keys(file.read_text(encoding="utf-8"), file.name):
        raise ConfigError("\n".join(shown))
    print(f"{file}: good: {len(mesh.tenants)} tenants, {len(mesh.tiers)} tiers, {len(mesh.router.workers)} workers")


def new_api_key(tenant: Annotated[str, typer.Argument(help="Who will use the key.")]) -> None:
    """Make a key of 256 random bits and print it, once, with the hash that belongs into the configuration.

    Example: tiermesh keys new demo
    """
    from tiermesh.common.keys import key_hash, new_key

    key = new_key()
    print(f"key (shown this once)                   {key}")
    print(f"for tenants.{tenant}.api_keys in the YAML".ljust(40) + key_hash(key))


def init_secret(
    out: Annotated[Path, typer.Option(help="The file to make; one that exists is never overwritten.")] = Path(
        "mesh.secret"
    ),
) -> None:
    """Make the mesh's secret: 32 random bytes, in a file that its owner alone can read.

    Every router of a mesh needs the same file, named by mesh.secret_file in the YAML; edge nodes and workers need none.
    It keys the salts under which edge nodes know API keys, so that what one node keeps matches no other node's.

    Example: tiermesh keys init --out mesh.secret
    """
    from tiermesh.common.secret import write_secret

    write_secret(out)
    print(f"{out}: copy it to every router of the mesh, and name it in the YAML as mesh.secret_file")


def export(
    hf_dir: Annotated[Path, typer.Argument(help="A Hugging Face directory of a Llama model.")],
    out: Annotated[Path, typer.Argument(help="The edge directory to write.")],
    bits: Annotated[Bits, typer.Option(help="Width of the weights.")] = Bits.EIGHT,
) -> None:
    """Make an edge node's artifact from a model directory.

    Example: tiermesh export ./my-llama ./edge-model --bits 8
    """
    _become("tiermesh.training.export_edge", str(hf_dir), str(out), "--bits", str(int(bits)))


def calibrate(
    edge: Annotated[Path, typer.Option(help="The edge directory; gets calibration.json.")],
    cloud: Annotated[str, typer.Option(help="Router (or worker) that serves the cloud model, as host:port.")],
    prompts: Annotated[
        Path, typer.Option(help='One JSON object with "prompt" per line; about 2,000 for a bound of 2 %.')
    ],
    key: Key = DEMO_KEY,
    epsilon: Annotated[float, typer.Option(help="Probability that a threshold does not keep its bound.")] = 0.05,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Calibrate the class that holds this; may be repeated. 0 and 0.8.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer at most, in tokens.")] = 96,
    threads: Annotated[int, typer.Option(help="Compute threads of the edge model.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure how far an edge can be trusted with a cloud model, for every bound at once.

    The mesh labels what the edge says on the prompts; an edge node that starts with the directory then uses it.
    Example: tiermesh calibrate --edge ./edge-model --cloud 127.0.0.1:7080 --prompts prompts.jsonl
    """
    os.environ["TIERMESH_API_KEY"] = key  # A command line is everybody's to read.
    arguments = ["--edge", str(edge), "--cloud", cloud, "--prompts", str(prompts)]
    arguments += ["--epsilon", str(epsilon), "--max-tokens", str(max_tokens), "--threads", str(threads)]
    arguments += [text for value in temperature or () for text in ("--temperature", str(value))]
    _become("tiermesh.edge.calibrate", *arguments, *(["--json"] if as_json else []))


def bench(context: typer.Context) -> None:
    """Run a benchmark by name (none: list them), with its own options.

    Example: tiermesh bench walk --json
    """
    _become("tiermesh.bench", *context.args)


def _become(module: str, *arguments: str) -> None:
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])

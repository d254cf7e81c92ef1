"""The router's command line over its configuration."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from ..common.config import MeshConfig, check_address, default_mesh, load_config, require_safe_listen


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tiermesh.router.main", description="Run a router.")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the mesh's YAML; read again when it changes, and on SIGHUP"
    )
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--worker", metavar="HOST:PORT[,…]", help="the workers, by comma")
    parser.add_argument("--metrics", metavar="HOST:PORT")
    parser.add_argument("--redis", metavar="URL", help="the shared cache; TIERMESH_CACHE__URL hides a password better")
    return parser.parse_args(arguments)


def read_config(given: argparse.Namespace) -> MeshConfig:
    """The file's configuration, or the default one, with what the command line says instead. Raises ConfigError."""
    environ = os.environ if given.redis is None else {**os.environ, "TIERMESH_CACHE__URL": json.dumps(given.redis)}
    mesh = (
        load_config(given.config, environ, with_secret=True)
        if given.config
        else default_mesh(environ, with_secret=True)
    )
    changes = {name: value for name in ("listen", "metrics") if (value := getattr(given, name)) is not None}
    if given.worker is not None:
        changes["workers"] = tuple(filter(None, given.worker.split(",")))
    mesh = replace(mesh, router=replace(mesh.router, **changes))
    for address in filter(None, (mesh.router.listen, mesh.router.metrics)):
        require_safe_listen(address, mesh.insecure)
    for address in mesh.router.workers:
        check_address(address)
    return mesh

"""The edge node's command line."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..common.config import MeshConfig, default_mesh, load_config, model_path


def read_config(arguments: list[str]) -> MeshConfig:
    """The file's configuration, or the default one, with what the command line says instead. Raises ConfigError."""
    parser = argparse.ArgumentParser(prog="tiermesh.edge.main", description="Run an edge node.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the mesh's YAML")
    parser.add_argument("--model", metavar="DIR", help="edge directory, or `starter`")
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--upstream", metavar="HOST:PORT", help="the router")
    parser.add_argument("--metrics", metavar="HOST:PORT")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="keeps the router's policy for offline starts")
    parser.add_argument("--threads", type=int, metavar="N")
    given = parser.parse_args(arguments)
    mesh = load_config(given.config) if given.config else default_mesh()
    names = ("listen", "upstream", "metrics", "state_dir", "threads")
    changes = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.model is not None:
        changes["model"] = model_path(given.model, "edge")
    return replace(mesh, edge=replace(mesh.edge, **changes))

"""One YAML for the whole mesh: read, checked, and turned into frozen types.

Every error names the path in the file and its line (`mesh.yaml:12: tiers.realtime.ttft_ms: …`), or the variable that
overrode it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .config_build import build_mesh, model_path
from .config_schema import is_loopback, split_address
from .config_types import (
    CacheConfig,
    CloudConfig,
    EdgeConfig,
    MeshConfig,
    NodeConfig,
    RouterConfig,
    TenantConfig,
    TenantLimits,
    TierConfig,
)
from .config_yaml import Document, apply_environment, read_document
from .errors import ConfigError
from .keys import key_hash

__all__ = [
    "DEMO_KEY",
    "DEMO_TENANT",
    "CacheConfig",
    "CloudConfig",
    "EdgeConfig",
    "MeshConfig",
    "NodeConfig",
    "RouterConfig",
    "TenantConfig",
    "TenantLimits",
    "TierConfig",
    "check_address",
    "default_mesh",
    "load_config",
    "model_path",
    "require_safe_listen",
]

DEMO_TENANT = "demo"
DEMO_KEY = "demo-key"


def _finish(document: Document, base: Path, environ: Mapping[str, str] | None, with_secret: bool) -> MeshConfig:
    apply_environment(document, os.environ if environ is None else environ)
    return build_mesh(document, base, with_secret)


def load_config(path: Path, environ: Mapping[str, str] | None = None, *, with_secret: bool = False) -> MeshConfig:
    """Reads a file and the environment's overrides; ConfigError has one line and one violation per fault.

    `with_secret` reads the file that `mesh.secret_file` names too, as routers do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: can't read the configuration: {why}") from exc
    document = read_document(text, path.name)
    mesh = _finish(document, path.parent, environ, with_secret)
    return replace(mesh, files=(path, *mesh.files))


def default_mesh(environ: Mapping[str, str] | None = None, *, with_secret: bool = False) -> MeshConfig:
    """The mesh without a file: tenant `demo` with key `demo-key`, all on loopback; variables apply here too."""
    document = Document("defaults")
    document.values["tenants"] = {DEMO_TENANT: {"api_keys": [key_hash(DEMO_KEY)], "degraded_allowed": True}}
    return _finish(document, Path.cwd(), environ, with_secret)


def check_address(address: str) -> None:
    """Raises ConfigError for what is no `host:port`."""
    try:
        split_address(address)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


def require_safe_listen(address: str, insecure: bool) -> None:
    """Refuses to serve plain connections beyond loopback unless the operator said so."""
    check_address(address)
    if not insecure and not is_loopback(address):
        raise ConfigError(
            f"{address} is open beyond this machine and connections are not encrypted: listen on 127.0.0.1, "
            "or set `insecure: true` (TIERMESH_INSECURE=true) where the network itself is trusted"
        )

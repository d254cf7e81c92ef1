"""From the file's sections to the frozen types, with the checks that span sections."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..models import starter
from .config_schema import (
    MEMORY_URL,
    CacheSection,
    CloudSection,
    EdgeSection,
    FileSchema,
    RouterSection,
    TenantSection,
    is_loopback,
    split_address,
)
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
from .config_yaml import Document, dotted
from .config_yaml import Path as KeyPath
from .errors import ConfigError, Violation
from .keys import HASH_PATTERN
from .secret import Secret, read_secret
from .types import Quality

STARTER = "starter"
NEEDS_SECRET = (
    "routers that share a store need the same secret: make it with `tiermesh keys init`, and name it as "
    "mesh.secret_file (TIERMESH_MESH__SECRET_FILE)"
)
_PRIVATE = ("token", "key", "secret", "cache.url")
"""Parts of names whose values are never shown."""
_SECTION_FAULTS = ("model_type", "dict_type", "list_type")
"""A value where a section or list belongs may be a key that came to the wrong place: it is not shown either."""


def model_path(value: str, side: Literal["cloud", "edge"], base: Path | None = None) -> Path:
    """The directory that a `model` value means: `starter` is the pair in the package, else a path from `base`."""
    if value == STARTER:
        return starter() / side
    return (base or Path.cwd()) / Path(value).expanduser()


class _Faults:
    """Collects every fault of a document, so that one look mends them all."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._lines: list[str] = []
        self._violations: list[Violation] = []

    def add(self, path: KeyPath, text: str) -> None:
        self._lines.append(f"{self._document.place(path)}: {dotted(path)}: {text}")
        self._violations.append(Violation(dotted(path), text))

    def raise_any(self, cause: Exception | None = None) -> None:
        if self._lines:
            raise ConfigError("\n".join(self._lines), violations=self._violations) from cause


def build_mesh(document: Document, base: Path, with_secret: bool) -> MeshConfig:
    """Checks a document and freezes it; relative paths start at `base`. ConfigError lists every fault.

    Only routers and checks take the mesh's secret along: edge nodes and workers must run without the file.
    """
    faults = _Faults(document)
    try:
        schema = FileSchema.model_validate(document.values)
    except ValidationError as exc:
        for fault in exc.errors():
            _add_fault(faults, fault)
        faults.raise_any(exc)
        raise
    _check_across(schema, faults)
    hashes = {name: _hashes(name, tenant, base, faults) for name, tenant in schema.tenants.items()}
    _check_keys(hashes, schema.router.admin_keys, faults)
    secret = _secret(schema.mesh.secret_file, base, faults) if with_secret else None
    if with_secret and schema.mesh.secret_file is None and schema.cache.url != MEMORY_URL:
        faults.add(("cache", "url"), NEEDS_SECRET)
    faults.raise_any()
    tiers = tuple(
        TierConfig(name, tier.ttft_ms / 1e3, tier.deadline_ms / 1e3, tier.min_share)
        for name, tier in schema.tiers.items()
    )
    return MeshConfig(
        name=schema.mesh.name,
        insecure=schema.insecure,
        secret=secret,
        tiers=tiers,
        tenants=tuple(_tenant(name, tenant, hashes[name], tiers) for name, tenant in schema.tenants.items()),
        cache=_cache(schema.cache),
        router=_router(schema.router),
        cloud=_cloud(schema.cloud, base, tiers, schema.router.worker_token),
        edge=_edge(schema.edge, base),
        files=_beside(schema, base, with_secret),
    )


def _beside(schema: FileSchema, base: Path, with_secret: bool) -> tuple[Path, ...]:
    """The files that a YAML names and that were read with it."""
    names = [tenant.api_keys_file for tenant in schema.tenants.values()]
    names += [schema.mesh.secret_file] if with_secret else []
    return tuple(base / Path(name).expanduser() for name in names if name is not None)


def _add_fault(faults: _Faults, fault: ErrorDetails) -> None:
    path = tuple(part for part in fault["loc"] if part != "[key]")
    given = fault.get("input")
    if fault["type"] == "extra_forbidden":
        faults.add(path, "unknown key")
    elif fault["type"] == "value_error":
        faults.add(path, fault["msg"].removeprefix("Value error, "))
    elif (
        isinstance(given, str | int | float | bool)
        and fault["type"] not in _SECTION_FAULTS
        and not any(word in dotted(path) for word in _PRIVATE)
    ):
        faults.add(path, f"{fault['msg'].lower().replace('input should', 'should')}, not {given!r}")
    else:
        faults.add(path, fault["msg"].lower().replace("input should", "should"))


def _check_across(schema: FileSchema, faults: _Faults) -> None:
    if sum(tier.min_share for tier in schema.tiers.values()) >= 1:
        faults.add(("tiers",), "the min_share of all tiers together must stay below 1")
    for name, tier in schema.tiers.items():
        if tier.ttft_ms > tier.deadline_ms:
            faults.add(("tiers", name, "ttft_ms"), "must not exceed deadline_ms")
    for name, tenant in schema.tenants.items():
        for index, tier_name in enumerate(tenant.tiers or ()):
            if tier_name not in schema.tiers:
                faults.add(("tenants", name, "tiers", index), f"no tier {tier_name!r}; there are {_list(schema.tiers)}")
    for name, node in schema.router.nodes.items():
        for index, tenant_name in enumerate(node.tenants):
            if tenant_name not in schema.tenants:
                faults.add(("router", "nodes", name, "tenants", index), f"no tenant {tenant_name!r}")
    if len(set(schema.router.workers)) != len(schema.router.workers):
        faults.add(("router", "workers"), "a worker is named twice")
    _check_listen(schema, faults)
    _check_announced(schema, faults)


def _check_announced(schema: FileSchema, faults: _Faults) -> None:
    cloud = schema.cloud
    if not cloud.announce_to:
        return
    if schema.router.worker_token is None:
        faults.add(
            ("cloud", "announce_to"), "routers take no announcement without router.worker_token: set it for both"
        )
    reachable = cloud.advertise or cloud.listen
    if split_address(reachable)[0] in ("0.0.0.0", "::"):
        faults.add(("cloud", "advertise"), f"{reachable} is nowhere that routers can reach: name the worker's address")


def _check_listen(schema: FileSchema, faults: _Faults) -> None:
    for section, listens in (("router", schema.router), ("cloud", schema.cloud), ("edge", schema.edge)):
        for key, address in (("listen", listens.listen), ("metrics", listens.metrics)):
            if address is not None and not schema.insecure and not is_loopback(address):
                faults.add(
                    (section, key),
                    f"{address} is open beyond this machine and connections are not encrypted: listen on 127.0.0.1, "
                    "or set `insecure: true` where the network itself is trusted",
                )


def _hashes(name: str, tenant: TenantSection, base: Path, faults: _Faults) -> tuple[str, ...]:
    if tenant.api_keys_file is None:
        return tuple(tenant.api_keys)
    path: KeyPath = ("tenants", name, "api_keys_file")
    try:
        text = (base / Path(tenant.api_keys_file).expanduser()).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        faults.add(path, f"can't read it: {exc.strerror if isinstance(exc, OSError) else 'not UTF-8'}")
        return ()
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if line and not HASH_PATTERN.fullmatch(line):
            faults.add(path, f"line {number} is no hash: write sha256: and 64 hex digits, one per line")
    return (*tenant.api_keys, *(line for line in lines if line))


def _secret(file: str | None, base: Path, faults: _Faults) -> Secret | None:
    if file is None:
        return None
    try:
        return read_secret(base / Path(file).expanduser())
    except ValueError as exc:
        faults.add(("mesh", "secret_file"), str(exc))
        return None


def _check_keys(hashes: dict[str, tuple[str, ...]], admin_keys: list[str], faults: _Faults) -> None:
    owners: dict[str, str] = {}
    for name, keys in hashes.items():
        for key in keys:
            if owners.setdefault(key, name) != name:
                faults.add(("tenants", name), f"has a key that tenant {owners[key]!r} has too")
    for index, key in enumerate(admin_keys):
        if key in owners:
            faults.add(("router", "admin_keys", index), f"is a key of tenant {owners[key]!r} too")


def _tenant(name: str, tenant: TenantSection, hashes: tuple[str, ...], tiers: tuple[TierConfig, ...]) -> TenantConfig:
    names = tuple(tier.name for tier in tiers)
    default = ("standard", *(tier for tier in names if tier != "standard")) if "standard" in names else names
    return TenantConfig(
        name=name,
        key_hashes=hashes,
        weight=tenant.weight,
        tiers=tuple(tenant.tiers) if tenant.tiers else default,
        limits=TenantLimits(**tenant.limits.model_dump()),
        quality=Quality(tenant.quality.mode),
        delta=tenant.quality.delta,
        cache_exact=tenant.cache.exact,
        cache_ttl_s=tenant.cache.ttl_s,
        cache_max_entries=tenant.cache.max_entries,
        cache_max_bytes=tenant.cache.max_bytes,
        degraded_allowed=tenant.degraded_allowed,
    )


def _router(section: RouterSection) -> RouterConfig:
    return RouterConfig(
        listen=section.listen,
        advertise=section.advertise or section.listen,
        metrics=section.metrics,
        workers=tuple(section.workers),
        worker_token=section.worker_token,
        nodes=tuple(NodeConfig(name, node.key, tuple(node.tenants)) for name, node in section.nodes.items()),
        max_tokens=section.limits.max_tokens,
        queued=section.limits.queued,
        alpha=section.alpha,
        drain_s=section.drain_ms / 1e3,
        admin_keys=tuple(section.admin_keys),
    )


def _cache(section: CacheSection) -> CacheConfig:
    return CacheConfig(section.url, section.max_bytes, section.budget_ms / 1e3, section.lease_ms / 1e3)


def _cloud(section: CloudSection, base: Path, tiers: tuple[TierConfig, ...], token: str | None) -> CloudConfig:
    return CloudConfig(
        listen=section.listen,
        metrics=section.metrics,
        model=model_path(section.model, "cloud", base),
        device=section.device,
        dtype=section.dtype,
        threads=section.threads,
        slots=section.slots,
        session_lease_s=section.session_lease_ms / 1e3,
        prefix_cache=section.prefix_cache,
        tiers=tiers,
        ngram_drafts=section.ngram_drafts,
        cuda_graphs=section.cuda_graphs,
        token=token,
        advertise=section.advertise,
        announce_to=tuple(section.announce_to),
    )


def _edge(section: EdgeSection, base: Path) -> EdgeConfig:
    return EdgeConfig(
        listen=section.listen,
        metrics=section.metrics,
        model=model_path(section.model, "edge", base),
        upstream=section.upstream,
        threads=section.threads,
        name=section.name,
        node_key=section.node_key,
        state_dir=base / Path(section.state_dir).expanduser() if section.state_dir else None,
        sessions=section.sessions,
        degraded_allowed=section.degraded_allowed,
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)

"""The YAML as it is written, checked by pydantic; `config.py` turns it into the frozen types that the services use.

Times end in `_ms` here and in `_s` inside. A key exists only when something obeys it.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .keys import HASH_PATTERN
from .secret import SECRET_PATTERN


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`; ValueError with what to write otherwise."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) <= 65535):
        raise ValueError(f"{address!r} is no address: write host:port, for instance 127.0.0.1:7080")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether an address is reachable from this machine alone."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(value: str) -> str:
    split_address(value)
    return value


def _hash(value: str) -> str:
    if not HASH_PATTERN.fullmatch(value):
        raise ValueError("write sha256: and 64 hex digits, as `tiermesh keys new` prints them; never the key itself")
    return value


def _name(value: str) -> str:
    if not value or len(value) > 64 or not value.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError("a name has 1 to 64 letters, digits, dots, dashes or underscores")
    return value


def _secret_file(value: str) -> str:
    if SECRET_PATTERN.fullmatch(value):
        raise ValueError("name a file that holds the secret, as `tiermesh keys init` makes it; never the secret itself")
    return value


MEMORY_URL = "memory://"


def check_cache_url(value: str) -> str:
    """Raises ValueError, without the URL, which may hold a password."""
    if value == MEMORY_URL:
        return value
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"write {MEMORY_URL}, or redis://host:6379/0 (rediss:// with TLS) for one that routers share")
    return value


Address = Annotated[str, AfterValidator(_address)]
CacheUrl = Annotated[str, AfterValidator(check_cache_url)]
KeyHash = Annotated[str, AfterValidator(_hash)]
Name = Annotated[str, AfterValidator(_name)]
SecretFile = Annotated[str, AfterValidator(_secret_file)]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MeshSection(_Section):
    """Who we are."""

    name: Name = "local"
    secret_file: SecretFile | None = None


class TierSection(_Section):
    """A latency class."""

    ttft_ms: Positive
    deadline_ms: Positive
    min_share: Share = 0.0


class LimitsSection(_Section):
    """What a tenant may use at most."""

    requests_per_minute: Positive = 600
    tokens_per_minute: Positive = 200_000
    tokens_per_day: Positive | None = None
    concurrent: Positive = 32
    queued: Positive = 256


class QualitySection(_Section):
    """How far answers may differ from the cloud's own."""

    mode: Literal["exact", "bounded", "edge"] = "bounded"
    delta: Share = 0.05


class TenantCacheSection(_Section):
    """What the cache may do for a tenant."""

    exact: bool = True
    ttl_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    max_entries: Annotated[int, Field(ge=0)] = 100_000
    max_bytes: Annotated[int, Field(ge=0)] = 64 * 2**20


class TenantSection(_Section):
    """Who pays."""

    api_keys: list[KeyHash] = []
    api_keys_file: str | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    tiers: Annotated[list[str], Field(min_length=1)] | None = None
    limits: LimitsSection = LimitsSection()
    quality: QualitySection = QualitySection()
    cache: TenantCacheSection = TenantCacheSection()
    degraded_allowed: bool = False


class CacheSection(_Section):
    """Where routers keep answers."""

    url: CacheUrl = MEMORY_URL
    max_bytes: Annotated[int, Field(ge=0)] = 256 * 2**20
    budget_ms: Positive = 5
    lease_ms: Annotated[int, Field(ge=100, le=60_000)] = 2_000


class NodeSection(_Section):
    """An edge node: its credential and the tenants that it may serve."""

    key: KeyHash
    tenants: list[str]


class RouterLimitsSection(_Section):
    """What the router takes at most."""

    max_tokens: Positive = 4096
    queued: Positive = 1024


class RouterSection(_Section):
    """The front door."""

    listen: Address = "127.0.0.1:7080"
    advertise: Address | None = None
    metrics: Address | None = "127.0.0.1:9080"
    workers: list[Address] = ["127.0.0.1:7090"]
    worker_token: Annotated[str, Field(min_length=16)] | None = None
    nodes: dict[Name, NodeSection] = {}
    admin_keys: list[KeyHash] = []
    limits: RouterLimitsSection = RouterLimitsSection()
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    drain_ms: Positive = 10_000


class CloudSection(_Section):
    """A worker."""

    listen: Address = "127.0.0.1:7090"
    advertise: Address | None = None
    announce_to: list[Address] = []
    metrics: Address | None = "127.0.0.1:9090"
    model: str = "starter"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    slots: Positive = 32
    session_lease_ms: Positive = 30_000
    prefix_cache: bool = True
    ngram_drafts: bool = True
    cuda_graphs: bool = False


class EdgeSection(_Section):
    """An edge node."""

    listen: Address = "127.0.0.1:7070"
    metrics: Address | None = "127.0.0.1:9070"
    model: str = "starter"
    upstream: Address = "127.0.0.1:7080"
    threads: Positive = 1
    name: Name = "edge"
    node_key: str | None = None
    state_dir: str | None = None
    sessions: Positive = 4
    degraded_allowed: bool = True


def default_tiers() -> dict[str, TierSection]:
    """The three tiers of a configuration that names none, highest first."""
    return {
        "realtime": TierSection(ttft_ms=50, deadline_ms=5_000, min_share=0.20),
        "standard": TierSection(ttft_ms=200, deadline_ms=30_000, min_share=0.10),
        "batch": TierSection(ttft_ms=1_000, deadline_ms=600_000, min_share=0.05),
    }


class FileSchema(_Section):
    """The whole file."""

    insecure: bool = False
    mesh: MeshSection = MeshSection()
    tiers: Annotated[dict[Name, TierSection], Field(min_length=1)] = Field(default_factory=default_tiers)
    tenants: dict[Name, TenantSection] = {}
    cache: CacheSection = CacheSection()
    router: RouterSection = RouterSection()
    cloud: CloudSection = CloudSection()
    edge: EdgeSection = EdgeSection()

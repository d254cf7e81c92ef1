"""The configuration as the services see it: frozen, times in seconds, paths resolved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .config_schema import MEMORY_URL, is_loopback
from .secret import Secret
from .types import Quality


@dataclass(frozen=True, slots=True)
class TierConfig:
    """A latency class; the order in the file is the order of priority."""

    name: str
    ttft_s: float
    """Time to first token that the tier aims at."""
    deadline_s: float
    """Time to the last token at most."""
    min_share: float
    """Share of the mesh's tokens that the tier gets even when higher tiers want everything."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may use at most."""

    requests_per_minute: int
    tokens_per_minute: int
    concurrent: int
    """Requests that run at once."""
    queued: int
    """Requests that wait at once."""
    tokens_per_day: int | None = None
    """None sets no budget."""


@dataclass(frozen=True, slots=True)
class TenantConfig:
    """Who pays: the unit of isolation, fairness and limits."""

    name: str
    key_hashes: tuple[str, ...]
    weight: float
    """Share of service against other tenants of the same tier."""
    tiers: tuple[str, ...]
    """The first is the default."""
    limits: TenantLimits
    quality: Quality
    delta: float
    """Share of units shown alone that may differ from the cloud's."""
    cache_exact: bool
    cache_ttl_s: float
    cache_max_entries: int
    """Answers that a router's store keeps for the tenant at most."""
    cache_max_bytes: int
    """Bytes that they take up at most."""
    degraded_allowed: bool
    """Whether an edge that lost the router may answer, marked, what it would have asked."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Where routers keep answers."""

    url: str = field(repr=False)
    """memory://, or Redis; may hold a password."""
    max_bytes: int
    """Of the store in memory; Redis has its own `maxmemory`."""
    budget_s: float
    """What a call to Redis may take; then it is a miss."""
    lease_s: float
    """After which a router that is gone no longer keeps others from computing what it had begun."""

    @property
    def shared(self) -> bool:
        """Whether several routers may use it."""
        return self.url != MEMORY_URL


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """An edge node that the router knows."""

    name: str
    key_hash: str
    tenants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """The front door."""

    listen: str
    advertise: str
    """The address under which others reach it; names this router to its workers."""
    metrics: str | None
    """None serves no metrics."""
    workers: tuple[str, ...]
    worker_token: str | None = field(repr=False)
    nodes: tuple[NodeConfig, ...]
    """Empty on loopback: any node may serve any tenant. Empty elsewhere: no node may connect."""
    max_tokens: int
    """The longest answer that anyone may ask for."""
    queued: int
    """Requests of all tenants that wait at once."""
    alpha: float
    """In a tenant's own order, the weight of the expected time: 0 is earliest due first, a large one shortest first."""
    drain_s: float
    """What a router that is told to stop gives to requests that it took in."""
    admin_keys: tuple[str, ...]
    """Hashes of operators' keys. Empty on loopback: any caller is an operator. Empty elsewhere: nobody is."""

    @property
    def admin_open(self) -> bool:
        """Whether operators need no key."""
        return not self.admin_keys and is_loopback(self.listen)

    @property
    def nodes_open(self) -> bool:
        """Whether edge nodes need no credential."""
        return not self.nodes and is_loopback(self.listen)


@dataclass(frozen=True, slots=True)
class CloudConfig:
    """A worker."""

    listen: str
    metrics: str | None
    model: Path
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    threads: int
    """0 leaves one core to the rest."""
    slots: int
    """Sequences that run at once."""
    session_lease_s: float
    """How long a session between two asks keeps its place and its KV; later it is opened and read anew."""
    prefix_cache: bool
    """Whether a tenant's prompts find what was computed for the same beginning before."""
    tiers: tuple[TierConfig, ...]
    """The file's tiers, highest first."""
    ngram_drafts: bool
    """Whether answers draft what followed the same ids before: fewer passes where text repeats, the same text."""
    cuda_graphs: bool
    """Whether decoding on a GPU goes by recorded passes: fewer launches for a longer start and some memory."""
    token: str | None = field(repr=False)
    """What routers must show; the file's `router.worker_token`. Shown to routers that it announces itself to."""
    advertise: str | None = None
    """Where routers reach it; None: where it listens."""
    announce_to: tuple[str, ...] = ()
    """Routers that need not name it in their configuration."""


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """An edge node."""

    listen: str
    metrics: str | None
    model: Path
    upstream: str
    threads: int
    name: str
    """As the router knows it in `router.nodes`."""
    node_key: str | None = field(repr=False)
    """Its credential at the router."""
    state_dir: Path | None
    """Where the router's policy is kept for a start without the router, and the ledger over restarts; None keeps
    nothing."""
    sessions: int
    """Generations that run at once."""
    degraded_allowed: bool
    """The operator's veto: False refuses what the edge would have to answer unasked, whatever the tenant allows."""


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """The whole file."""

    name: str
    insecure: bool
    """Allows plain connections from beyond this machine."""
    secret: Secret | None
    """What `mesh.secret_file` holds, for routers; None without that key, and for edge nodes and workers."""
    tiers: tuple[TierConfig, ...]
    tenants: tuple[TenantConfig, ...]
    cache: CacheConfig
    router: RouterConfig
    cloud: CloudConfig
    edge: EdgeConfig
    files: tuple[Path, ...] = ()
    """What it was read from: the YAML, tenants' files of keys, the secret's file. Empty for the default one."""

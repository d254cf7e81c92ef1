"""What an edge node may do, as the frame that tells it. Pure."""

from __future__ import annotations

from ..common.config_types import NodeConfig, TenantConfig
from ..common.frames import Policy, TenantPolicy, TierPolicy
from ..common.keys import salted_hash
from .tenants import Directory

VALID_S = 24 * 3600.0
"""How long a node may go on without the router: a day offline, after which keys revoked meanwhile stop working."""

RENEW_S = 600.0
"""How often a connected node hears it anew."""


def policy_for(directory: Directory, node: NodeConfig) -> Policy:
    """The node's tenants, as far as they exist, and all tiers; key hashes under a salt that is this node's alone."""
    salt = directory.secret.policy_salt(node.name)
    tenants = [directory.tenants[name] for name in node.tenants if name in directory.tenants]
    return Policy(
        tenants=tuple(_tenant(tenant, salt) for tenant in tenants),
        tiers=tuple(TierPolicy(tier.name, tier.ttft_s, tier.deadline_s) for tier in directory.mesh.tiers),
        valid_s=VALID_S,
        salt=salt,
    )


def _tenant(tenant: TenantConfig, salt: bytes) -> TenantPolicy:
    return TenantPolicy(
        name=tenant.name,
        key_hashes=tuple(salted_hash(salt, stored) for stored in tenant.key_hashes),
        tiers=tenant.tiers,
        quality=tenant.quality,
        delta=tenant.delta,
        degraded_allowed=tenant.degraded_allowed,
        cache_exact=tenant.cache_exact,
        cache_ttl_s=tenant.cache_ttl_s,
    )

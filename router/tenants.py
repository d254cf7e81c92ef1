"""Who calls, and what they may: keys to tenants, nodes to the tenants they serve, and requests held to both."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace

from ..common.config_types import MeshConfig, NodeConfig, TenantConfig, TierConfig
from ..common.errors import DeadlineExceeded, Forbidden, InvalidRequest, Unauthenticated
from ..common.keys import key_hash
from ..common.secret import Secret
from ..common.types import Quality, Request


class Directory:
    """The tenants, tiers and nodes of one configuration; a reload makes a new one."""

    def __init__(self, mesh: MeshConfig, secret: Secret) -> None:
        self.mesh = mesh
        self.secret = secret
        self.tiers: dict[str, TierConfig] = {tier.name: tier for tier in mesh.tiers}
        self.tenants: dict[str, TenantConfig] = {tenant.name: tenant for tenant in mesh.tenants}
        self._nodes = {node.name: node for node in mesh.router.nodes}
        self._blind = secrets.token_bytes(32)
        self._by_key = {self._blinded(stored): tenant for tenant in mesh.tenants for stored in tenant.key_hashes}

    def authenticate(self, key: str) -> TenantConfig:
        """The tenant of an API key. Raises Unauthenticated."""
        if not key:
            raise Unauthenticated("no API key: send the metadata `authorization: Bearer <key>`")
        tenant = self._by_key.get(self._blinded(key_hash(key)))
        if tenant is None:
            raise Unauthenticated("this API key is not known here; ask your operator for one")
        return tenant

    def check_operator(self, key: str) -> None:
        """Raises Unauthenticated or Forbidden unless this is an operator's key, or operators need none."""
        router = self.mesh.router
        if router.admin_open:
            return
        if not router.admin_keys:
            raise Forbidden(
                "nobody may do this here: `tiermesh keys new operator` makes a key, router.admin_keys takes its hash"
            )
        matches = [hmac.compare_digest(stored, key_hash(key)) for stored in router.admin_keys]
        if not key or not any(matches):
            raise Unauthenticated("this needs an operator's key, one that router.admin_keys has the hash of")

    def check_worker(self, token: str) -> None:
        """Raises Unauthenticated or Forbidden unless the workers' token was shown."""
        known = self.mesh.router.worker_token
        if known is None:
            raise Forbidden("workers can't announce themselves here: set router.worker_token, here and for the workers")
        if not hmac.compare_digest(token.encode(), known.encode()):
            raise Unauthenticated("this worker's token is not the one of this router's router.worker_token")

    def _blinded(self, stored: str) -> bytes:
        """A stored key's place in the directory, under a secret of its own: how long a look-up takes depends on bytes
        that nobody outside can know or choose, so it tells nothing of any key or hash.

        Keyed BLAKE2b is a PRF as it is (RFC 7693), and unlike `hmac.digest` does not let go of the interpreter.
        """
        return hashlib.blake2b(stored.encode(), key=self._blind, digest_size=32).digest()

    def tenant(self, name: str) -> TenantConfig:
        """A tenant by name, as an edge node claims it. Raises Forbidden."""
        tenant = self.tenants.get(name)
        if tenant is None:
            raise Forbidden(f"there is no tenant {name!r}")
        return tenant

    def node(self, name: str, credential: str) -> NodeConfig:
        """The edge node that shows this credential. Raises Unauthenticated."""
        if self.mesh.router.nodes_open:
            return NodeConfig(name, "", tuple(self.tenants))
        node = self._nodes.get(name)
        stored = node.key_hash if node else key_hash("")
        if not hmac.compare_digest(stored, key_hash(credential)) or node is None or not credential:
            raise Unauthenticated(
                f"edge node {name!r} or its credential is not known here; name it under router.nodes and set its "
                "edge.node_key"
            )
        return node

    def clamp(self, request: Request, tenant: TenantConfig) -> Request:
        """The request held to its tenant: tier and deadline filled in, quality and δ tightened, never loosened.

        Raises InvalidRequest, Forbidden or DeadlineExceeded.
        """
        tier = self.tier(request.tier, tenant)
        asked_s = request.deadline_s
        if asked_s is not None and asked_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the request came; allow more time")
        if request.max_tokens > self.mesh.router.max_tokens:
            raise InvalidRequest.field(
                "max_tokens", f"must be at most {self.mesh.router.max_tokens}, not {request.max_tokens}"
            )
        return replace(
            request,
            tier=tier.name,
            deadline_s=tier.deadline_s if asked_s is None else min(asked_s, tier.deadline_s),
            quality=stricter(request.quality, tenant.quality),
            delta=tenant.delta if request.delta is None else min(request.delta, tenant.delta),
        )

    def tier(self, name: str, tenant: TenantConfig) -> TierConfig:
        """The tier that a tenant asks for by name, or its default. Raises InvalidRequest or Forbidden."""
        name = name or tenant.tiers[0]
        if name not in self.tiers:
            raise InvalidRequest.field("tier", f"there is no tier {name!r}; there are {', '.join(self.tiers)}")
        if name not in tenant.tiers:
            raise Forbidden(f"tier {name!r} is not open to this tenant; it may use {', '.join(tenant.tiers)}")
        return self.tiers[name]


def stricter(asked: Quality | None, own: Quality) -> Quality:
    """The stricter of two qualities."""
    return own if asked is None or asked.looseness >= own.looseness else asked

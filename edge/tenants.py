"""Who may be served, as the router said: kept on disk, so that a restart without the router still serves."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.clock import Clock, MonotonicClock
from ..common.errors import Forbidden, InvalidRequest, Unauthenticated, Unavailable
from ..common.frames import Policy, TenantPolicy, TierPolicy
from ..common.keys import key_hash, salted_hash
from ..common.telemetry import get_logger
from ..common.types import Quality, Request

_log = get_logger()
_FILE = "policy.json"
_FORMAT = 2
"""Of the file; another one is ignored."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one request gets: the tenant's terms, tightened by the request's own."""

    tenant: TenantPolicy
    tier: TierPolicy
    quality: Quality
    delta: float
    deadline_s: float


class Tenants:
    """The policy in force.

    How long it is valid is measured on a clock that nobody sets. Only what is kept on disk names a time of day, since
    it outlives the process; a start takes it for as long as a policy is valid at most, whatever time it is then.
    """

    def __init__(self, state_dir: Path | None, clock: Clock | None = None) -> None:
        self._clock = clock or MonotonicClock()
        self._path = None if state_dir is None else state_dir / _FILE
        self._policy: Policy | None = None
        self._valid_until = 0.0
        self._owners: list[tuple[bytes, TenantPolicy]] = []
        self._tiers: dict[str, TierPolicy] = {}
        self.known = asyncio.Event()
        """Set once there is a policy."""

    def restore(self) -> None:
        """Takes up the policy that was kept on disk, if there is one; a broken file is logged and ignored."""
        if self._path is None or not self._path.exists():
            return
        try:
            kept = json.loads(self._path.read_text())
            if kept["format"] != _FORMAT:
                raise ValueError(f"format {kept['format']!r} is not read here, only {_FORMAT}")
            policy, expires_at = _policy_from(kept["policy"]), float(kept["expires_at"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            _log.warning("policy_unreadable", path=str(self._path), cause=repr(exc))
            return
        valid_s = min(expires_at - time.time(), policy.valid_s)
        self._apply(policy, valid_s)
        _log.info("policy_restored", tenants=len(policy.tenants), valid_s=round(valid_s, 1))

    def replace(self, policy: Policy) -> None:
        """Takes a policy from the router, and keeps it."""
        changed = policy != self._policy
        self._apply(policy, policy.valid_s)
        if changed:
            _log.info("policy_received", tenants=len(policy.tenants), valid_s=policy.valid_s)
        self._keep(time.time() + policy.valid_s)

    def authenticate(self, key: str) -> TenantPolicy:
        """The tenant of a key. Raises Unauthenticated, or Unavailable while there is no valid policy to check it by."""
        if self._policy is None:
            raise Unavailable(
                "this edge node has not heard from its router yet, so it knows no keys; try again shortly",
                retry_after_s=1.0,
            )
        if self._clock.now() > self._valid_until:
            raise Unavailable(
                "this edge node has not heard from its router for so long that its policy has expired",
                retry_after_s=5.0,
            )
        if not key:
            raise Unauthenticated('no API key; send it as "authorization: Bearer KEY"')
        tenant = self._owner(key)
        if tenant is None:
            raise Unauthenticated("this API key is not known here")
        return tenant

    def by_name(self, name: str) -> TenantPolicy:
        """A tenant that was authenticated a moment ago. Raises Unauthenticated when the router has withdrawn it."""
        assert self._policy is not None
        for tenant in self._policy.tenants:
            if tenant.name == name:
                return tenant
        raise Unauthenticated("this API key is not known here any more")

    def grant(self, request: Request, tenant: TenantPolicy) -> Grant:
        """What a request gets. It may tighten its tenant's terms; asking for looser ones gives the tenant's own.

        Raises InvalidRequest for a tier that does not exist, Forbidden for one that the tenant does not have.
        """
        name = request.tier or tenant.tiers[0]
        tier = self._tiers.get(name)
        if tier is None:
            raise InvalidRequest.field("tier", f"{name!r} does not exist; there are {', '.join(self._tiers)}")
        if name not in tenant.tiers:
            raise Forbidden(f"tier {name!r} is not open to this tenant; it has {', '.join(tenant.tiers)}")
        asked = request.quality or tenant.quality
        return Grant(
            tenant=tenant,
            tier=tier,
            quality=min(asked, tenant.quality, key=lambda quality: quality.looseness),
            delta=tenant.delta if request.delta is None else min(request.delta, tenant.delta),
            deadline_s=tier.deadline_s if request.deadline_s is None else min(request.deadline_s, tier.deadline_s),
        )

    def _owner(self, key: str) -> TenantPolicy | None:
        """Compares with every hash, each in constant time, so that the time tells nothing of a match or its place."""
        assert self._policy is not None
        shown, owner = salted_hash(self._policy.salt, key_hash(key)).encode(), None
        for known, tenant in self._owners:
            if hmac.compare_digest(known, shown):
                owner = tenant
        return owner

    def lowest_tier(self, name: str) -> TierPolicy:
        """The tier of lowest priority that a tenant may use. Raises Unauthenticated when the tenant is withdrawn."""
        open_to = self.by_name(name).tiers
        return [tier for tier in self._tiers.values() if tier.name in open_to][-1]

    def _apply(self, policy: Policy, valid_s: float) -> None:
        self._policy, self._valid_until = policy, self._clock.now() + valid_s
        self._owners = [(known.encode(), tenant) for tenant in policy.tenants for known in tenant.key_hashes]
        self._tiers = {tier.name: tier for tier in policy.tiers}
        self.known.set()

    def _keep(self, expires_at: float) -> None:
        """Writes beside and renames: a crash leaves the old file or the new one. Readable by the owner alone."""
        if self._path is None or self._policy is None:
            return
        policy = asdict(self._policy) | {"salt": self._policy.salt.hex()}
        facts = {"format": _FORMAT, "expires_at": expires_at, "policy": policy}
        beside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(facts, file, default=lambda quality: quality.value)
            beside.replace(self._path)
        except OSError as exc:
            _log.warning("policy_not_kept", path=str(self._path), cause=repr(exc))


def _policy_from(facts: dict[str, Any]) -> Policy:
    return Policy(
        tenants=tuple(
            TenantPolicy(
                **{
                    **tenant,
                    "key_hashes": tuple(map(str, tenant["key_hashes"])),
                    "tiers": tuple(tenant["tiers"]),
                    "quality": Quality(tenant["quality"]),
                }
            )
            for tenant in facts["tenants"]
        ),
        tiers=tuple(TierPolicy(**tier) for tier in facts["tiers"]),
        valid_s=float(facts["valid_s"]),
        salt=bytes.fromhex(facts["salt"]),
    )

"""What operators may do to a running router."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..common.cache_types import CacheStats, Scope
from ..common.errors import InvalidRequest, ModelNotFound
from ..common.explanation import Explanation
from ..common.inference_servicer import bearer
from ..common.router_status import ConfigStatus, RouterStatus
from ..common.telemetry import get_logger
from ..common.types import Request
from .core import Core
from .explain import Explainer
from .view import status_of

_log = get_logger()

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Operations:
    """Everything behind the admin port of one router; an `Operated`."""

    def __init__(self, core: Core, explainer: Explainer, config: Callable[[], ConfigStatus]) -> None:
        self._core = core
        self._config = config
        self._explainer = explainer

    def check_operator(self, metadata: Mapping[str, str]) -> None:
        """Raises Unauthenticated or Forbidden unless an operator calls."""
        self._core.directory.check_operator(bearer(metadata))

    async def purge_cache(self, scope: Scope) -> None:
        """Forgets cached answers: everywhere when routers share a store, else at this router.

        Raises InvalidRequest, ModelNotFound, or Unavailable when the store doesn't confirm it.
        """
        await self._core.parts.store.purge(self._meant(scope))
        _log.info("cache_purged", kind=scope.kind, name=scope.name)

    async def cache_stats(self) -> CacheStats:
        """What the cache holds. Raises Unavailable when the store doesn't tell."""
        parts, directory = self._core.parts, self._core.directory
        return CacheStats(
            store="redis" if directory.mesh.cache.shared else "memory",
            breaker=parts.store.state.value,
            tenants=await parts.store.holdings(directory.tenants),
            counts=parts.metrics.cache.counts(),
        )

    async def explain(self, tenant: str, request: Request) -> Explanation:
        """What would become of a tenant's request. Raises InvalidRequest when there is no such tenant."""
        self._check_tenant(tenant)
        return await self._explainer.explain(tenant, request)

    async def status(self) -> RouterStatus:
        """Configuration, tiers, tenants and workers as they are now."""
        return await status_of(self._core, self._config())

    def _check_tenant(self, name: str) -> None:
        if name not in self._core.directory.tenants:
            known = ", ".join(self._core.directory.tenants)
            raise InvalidRequest.field("tenant", f"there is no tenant {name!r}; there are {known}")

    def _meant(self, scope: Scope) -> Scope:
        """The scope with what a store knows: names of tenants, digests of models."""
        if scope.kind == "tenant":
            self._check_tenant(scope.name)
        if scope.kind != "model" or _DIGEST.fullmatch(scope.name):
            return scope
        model = self._core.parts.registry.model
        if model is None or model.id != scope.name:
            served = model.id if model else "none"
            raise ModelNotFound(
                f"no model {scope.name!r} is served here, there is {served}; name others by their digest, 64 hex digits"
            )
        return Scope("model", model.digests.model)

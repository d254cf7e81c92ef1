"""A request that was let in, with all that the router decided about it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from operator import attrgetter

from ..cache.keys import CacheKey, cacheable, exact_key
from ..cache.port import Keeping
from ..common.config_types import TenantConfig
from ..common.draws import draw_hex, draw_seed
from ..common.types import CacheControl, Digests, Request

_substance = attrgetter(*({field.name for field in fields(Request)} - {"request_id", "deadline_s"}))
"""All of a request that decides what is answered."""


@dataclass(frozen=True, slots=True)
class Order:
    """One request of one tenant."""

    request: Request
    """Clamped, with seed and request id filled in."""
    asked: Request
    """As it came."""
    tenant: TenantConfig
    deadline: float
    """Monotonic seconds."""
    seed_given: bool
    """Whether the client chose the seed, so that the answer is a function of the request."""
    metered: bool = True
    """False where an edge node reports the usage itself."""

    @property
    def shared(self) -> bool:
        """Whether another request's answer may serve this one."""
        return self.request.cache is CacheControl.USE and cacheable(self.request, self.seed_given)

    @property
    def kept(self) -> bool:
        """Whether the answer may be put into the cache."""
        wanted = self.request.cache is not CacheControl.BYPASS and self.tenant.cache_exact
        return wanted and cacheable(self.request, self.seed_given)

    @property
    def keeping(self) -> Keeping:
        """On what terms the answer is kept."""
        tenant = self.tenant
        return Keeping(tenant.cache_ttl_s, tenant.cache_max_entries, tenant.cache_max_bytes)

    @property
    def identity(self) -> int:
        """The same when the same is asked again, whatever its request id; good within this process."""
        return hash((*_substance(self.asked), self.tenant.name))

    def repeats(self, other: Order) -> bool:
        """Whether both ask for the same, however long they have for it."""
        mine, its = self.asked, other.asked
        return mine.request_id == its.request_id and _substance(mine) == _substance(its)

    def key(self, digests: Digests) -> CacheKey:
        """The exact key, for a pool with these digests."""
        return exact_key(self.request, self.tenant.name, digests)


def order_of(
    asked: Request, clamped: Request, tenant: TenantConfig, now: float, *, seed_given: bool, metered: bool = True
) -> Order:
    """Fills in what the first hop draws: a private seed and a request id."""
    sampling = clamped.sampling
    if sampling.seed is None:
        sampling = replace(sampling, seed=draw_seed())
    assert clamped.deadline_s is not None, "a clamped request has its tier's deadline"
    request = replace(clamped, sampling=sampling, request_id=clamped.request_id or draw_hex(8))
    return Order(
        request=request,
        asked=asked,
        tenant=tenant,
        deadline=now + clamped.deadline_s,
        seed_given=seed_given,
        metered=metered,
    )

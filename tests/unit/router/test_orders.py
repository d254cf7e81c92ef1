"""What the router knows of a request beside what it asks for."""

from __future__ import annotations

from dataclasses import replace

from tiermesh.common.config import TenantConfig, default_mesh
from tiermesh.common.types import ChatMessage, Request, Sampling
from tiermesh.router.orders import order_of

(DEMO,) = default_mesh({}).tenants
ASKED = Request("a prompt", 8, sampling=Sampling(temperature=0.7))


def identity(asked: Request, tenant: TenantConfig = DEMO, deadline_s: float = 3.0) -> int:
    clamped = replace(asked, deadline_s=deadline_s)
    return order_of(asked, clamped, tenant, 0.0, seed_given=asked.sampling.seed is not None).identity


def test_who_asks_the_same_again_is_known_again() -> None:
    """Whatever its id, its time left and the seed that was drawn for it."""
    again = replace(ASKED, request_id="again", deadline_s=9.0)
    assert identity(ASKED) == identity(again, deadline_s=9.0)


def test_other_requests_and_other_tenants_are_told_apart() -> None:
    others = [
        replace(ASKED, prompt="another"),
        replace(ASKED, prompt=(ChatMessage("user", "a prompt"),)),
        replace(ASKED, prompt=(1, 2)),
        replace(ASKED, max_tokens=9),
        replace(ASKED, tier="batch"),
        replace(ASKED, sampling=replace(ASKED.sampling, seed=1, logit_bias=((3, 0.5),))),
    ]
    found = {identity(asked) for asked in [ASKED, *others]} | {identity(ASKED, replace(DEMO, name="other"))}
    assert len(found) == len(others) + 2

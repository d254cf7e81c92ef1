"""Requests held to their tenant; the policy for nodes."""

from __future__ import annotations

import hmac
from dataclasses import replace

import pytest

from tiermesh.common.config import MeshConfig, NodeConfig, default_mesh
from tiermesh.common.errors import DeadlineExceeded, Forbidden, InvalidRequest, Unauthenticated
from tiermesh.common.keys import key_hash
from tiermesh.common.secret import Secret
from tiermesh.common.types import Quality, Request
from tiermesh.router.policy import policy_for
from tiermesh.router.tenants import Directory, stricter

REQUEST = Request("x", 8)
SECRET = Secret(bytes(32))


def mesh(**changes: object) -> MeshConfig:
    base = default_mesh({})
    (demo,) = base.tenants
    return replace(base, tenants=(replace(demo, **changes),))  # type: ignore[arg-type]


def test_a_request_gets_its_tenants_defaults() -> None:
    base = mesh(delta=0.02)
    clamped = Directory(base, SECRET).clamp(REQUEST, base.tenants[0])
    assert (clamped.tier, clamped.deadline_s, clamped.quality, clamped.delta) == (
        "standard",
        30.0,
        Quality.BOUNDED,
        0.02,
    )


@pytest.mark.parametrize(
    ("own", "asked", "used"),
    [
        (Quality.BOUNDED, None, Quality.BOUNDED),
        (Quality.BOUNDED, Quality.EXACT, Quality.EXACT),
        (Quality.BOUNDED, Quality.EDGE, Quality.BOUNDED),
        (Quality.EXACT, Quality.EDGE, Quality.EXACT),
        (Quality.EDGE, Quality.BOUNDED, Quality.BOUNDED),
    ],
)
def test_quality_is_tightened_never_loosened(own: Quality, asked: Quality | None, used: Quality) -> None:
    assert stricter(asked, own) is used


def test_deadline_and_delta_are_tightened_never_loosened() -> None:
    base = mesh(delta=0.05)
    directory, tenant = Directory(base, SECRET), base.tenants[0]
    loose = directory.clamp(replace(REQUEST, deadline_s=1e6, delta=0.5), tenant)
    assert (loose.deadline_s, loose.delta) == (30.0, 0.05)
    tight = directory.clamp(replace(REQUEST, deadline_s=2.0, delta=0.01, tier="batch"), tenant)
    assert (tight.deadline_s, tight.delta, tight.tier) == (2.0, 0.01, "batch")
    with pytest.raises(DeadlineExceeded):
        directory.clamp(replace(REQUEST, deadline_s=0.0), tenant)
    with pytest.raises(InvalidRequest, match="max_tokens: must be at most 4096"):
        directory.clamp(replace(REQUEST, max_tokens=5000), tenant)


def test_tiers_must_exist_and_be_allowed() -> None:
    base = mesh(tiers=("batch",))
    directory = Directory(base, SECRET)
    assert directory.tier("", base.tenants[0]).name == "batch"
    with pytest.raises(Forbidden):
        directory.tier("realtime", base.tenants[0])
    with pytest.raises(InvalidRequest):
        directory.tier("warp", base.tenants[0])


def test_nodes_need_their_own_credential_once_any_is_named() -> None:
    base = mesh()
    assert Directory(base, SECRET).node("any", "").tenants == ("demo",)
    nodes = (NodeConfig("shop", key_hash("secret"), ("demo", "gone")),)
    closed = Directory(replace(base, router=replace(base.router, nodes=nodes)), SECRET)
    shop = closed.node("shop", "secret")
    assert [tenant.name for tenant in policy_for(closed, shop).tenants] == ["demo"]
    for name, credential in (("shop", ""), ("shop", "wrong"), ("other", "secret"), ("other", "")):
        with pytest.raises(Unauthenticated):
            closed.node(name, credential)
    beyond = Directory(replace(base, insecure=True, router=replace(base.router, listen="0.0.0.0:1")), SECRET)
    with pytest.raises(Unauthenticated):
        beyond.node("any", "")


def test_looking_a_key_up_compares_nothing_that_a_caller_can_choose_or_know() -> None:
    """Keys are found by a keyed hash whose secret is the directory's own, so the time of a look-up depends on bytes
    that are new with each directory; not by their stored hash, and never by themselves."""
    base = mesh()
    one, other = Directory(base, SECRET), Directory(base, SECRET)
    (stored,) = base.tenants[0].key_hashes
    assert one.authenticate("demo-key") == other.authenticate("demo-key") == base.tenants[0]
    assert not set(one._by_key) & set(other._by_key)
    known = (stored.encode(), bytes.fromhex(stored.removeprefix("sha256:")), b"demo-key")
    assert not set(one._by_key) & set(known)
    for close in ("demo-kez", "demo-ke", "demo-keyy", "Demo-key", "", stored):
        with pytest.raises(Unauthenticated):
            one.authenticate(close)


def test_every_operators_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    base = mesh()
    keys = ("first", "second", "third")
    router = replace(base.router, admin_keys=tuple(key_hash(key) for key in keys))
    directory, compared = Directory(replace(base, router=router), SECRET), []
    whole = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or whole(a, b))
    for key in keys:
        compared.clear()
        directory.check_operator(key)
        assert compared == list(router.admin_keys)
    compared.clear()
    with pytest.raises(Unauthenticated):
        directory.check_operator("fourth")
    assert compared == list(router.admin_keys)

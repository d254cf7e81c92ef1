"""From the router's configuration to an edge node's doorstep: who gets in, and what a node's knowledge is worth."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common import wire_frames
from tiermesh.common.config import MeshConfig, NodeConfig, default_mesh
from tiermesh.common.errors import Unauthenticated
from tiermesh.common.frames import Policy
from tiermesh.common.keys import key_hash
from tiermesh.common.secret import Secret
from tiermesh.edge.tenants import Tenants
from tiermesh.router.policy import policy_for
from tiermesh.router.tenants import Directory
from tiermesh.v1 import relay_pb2

BASE = default_mesh({})
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
OWNERS = st.dictionaries(KEYS, st.sampled_from(["ann", "bob", "cy"]), max_size=6)
SECRETS = st.binary(min_size=32, max_size=32).map(Secret)
NODE = NodeConfig("shop", "", ("ann", "bob"))


def mesh(owners: dict[str, str]) -> MeshConfig:
    """Tenants ann, bob and cy with the keys that are theirs."""
    (like,) = BASE.tenants
    tenants = tuple(
        replace(like, name=name, key_hashes=tuple(key_hash(key) for key, owner in owners.items() if owner == name))
        for name in ("ann", "bob", "cy")
    )
    return replace(BASE, tenants=tenants)


def sent(owners: dict[str, str], secret: Secret, node: NodeConfig = NODE) -> Policy:
    """The policy as it arrives, over the wire."""
    frame = wire_frames.down_to(policy_for(Directory(mesh(owners), secret), node))
    policy = wire_frames.down_from(relay_pb2.DownFrame.FromString(frame.SerializeToString()))
    assert isinstance(policy, Policy)
    return policy


def let_in(policy: Policy, key: str) -> str | None:
    """Whom an edge node takes the key's owner for."""
    tenants = Tenants(None)
    tenants.replace(policy)
    with suppress(Unauthenticated):
        return tenants.authenticate(key).name
    return None


@given(owners=OWNERS, secret=SECRETS, stranger=KEYS)
def test_a_key_opens_an_edge_node_iff_it_is_one_of_its_tenants(
    owners: dict[str, str], secret: Secret, stranger: str
) -> None:
    policy = sent(owners, secret)
    for key in (*owners, stranger):
        owner = owners.get(key)
        assert let_in(policy, key) == (owner if owner in NODE.tenants else None)


@given(owners=OWNERS, secret=SECRETS)
def test_what_a_node_knows_opens_nothing(owners: dict[str, str], secret: Secret) -> None:
    policy = sent(owners, secret)
    known = [text for tenant in policy.tenants for text in tenant.key_hashes]
    for text in (*known, *(key_hash(key) for key in owners)):
        assert let_in(policy, text) is None


@given(owners=OWNERS, secret=SECRETS)
@settings(max_examples=50)
def test_two_nodes_hashes_share_nothing(owners: dict[str, str], secret: Secret) -> None:
    one, other = (sent(owners, secret, replace(NODE, name=name)) for name in ("shop", "barn"))
    stored = {known for tenant in mesh(owners).tenants for known in tenant.key_hashes}
    mine, theirs = ({known for t in policy.tenants for known in t.key_hashes} for policy in (one, other))
    assert one.salt != other.salt
    assert len(mine) == len(theirs) == sum(owner in NODE.tenants for owner in owners.values())
    assert not mine & theirs
    digits = [{known.split(":")[1] for known in hashes} for hashes in (mine | theirs, stored)]
    assert not digits[0] & digits[1]


@given(owners=OWNERS, value=st.binary(min_size=32, max_size=32))
@settings(max_examples=50)
def test_routers_with_one_secret_send_one_policy(owners: dict[str, str], value: bytes) -> None:
    assert sent(owners, Secret(value)) == sent(owners, Secret(value))
    assert sent(owners, Secret(value)) != sent(owners, Secret(value[::-1] + b"x"))

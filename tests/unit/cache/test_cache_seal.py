"""Names and MACs: nobody reaches another's entries, whatever they are called."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cache.keys import CacheKey, exact_key
from tiermesh.cache.seal import Seal, Unreadable
from tiermesh.common.secret import Secret
from tiermesh.common.types import Digests, Request

SEAL = Seal(Secret(bytes(range(32))))
ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=12)
"""All of Unicode, lone surrogates too."""


@given(ANY, ANY)
def test_names_are_one_to_one_and_of_a_fixed_alphabet(one: str, other: str) -> None:
    for name in (SEAL.tenant, SEAL.model):
        assert (name(one) == name(other)) == (one == other)
        assert re.fullmatch(r"[A-Za-z0-9_-]{20}", name(one))
    assert SEAL.tenant(one) != SEAL.model(one)


@given(ANY, ANY, ANY)
def test_a_tenant_by_any_name_gets_no_key_of_another(mine: str, theirs: str, prompt: str) -> None:
    digests, request = Digests("m", "t", "c"), Request(prompt, 4)
    keys = [exact_key(request, tenant, digests) for tenant in (mine, theirs)]
    assert (keys[0] == keys[1]) == (mine == theirs)
    names = [(SEAL.tenant(key.tenant), SEAL.request(key)) for key in keys]
    assert (names[0] == names[1]) == (mine == theirs)


TRICKS = [
    "café",
    "cafe\u0301",
    "CAFÉ",
    "cafe",
    "саfe",
    "ca\u200bfe",
    "cafe\0",
    "cafe:",
    "tm:cafe",
    "cafe*",
    "",
    "\ufeffcafe",
]


def test_names_that_look_alike_are_apart() -> None:
    assert len({SEAL.tenant(name) for name in TRICKS}) == len(TRICKS)


def test_without_the_secret_names_tell_nothing() -> None:
    other = Seal(Secret(bytes(32)))
    assert other.tenant("demo") != SEAL.tenant("demo")
    assert other.request(CacheKey("demo", "d")) != SEAL.request(CacheKey("demo", "d"))


@given(st.binary(max_size=60), st.data())
def test_only_what_was_sealed_under_a_name_opens_under_it(value: bytes, data: st.DataObject) -> None:
    sealed = SEAL.close("here", value)
    assert SEAL.open("here", sealed) == value
    at = data.draw(st.integers(0, len(sealed) - 1))
    altered = bytearray(sealed)
    altered[at] ^= data.draw(st.integers(1, 255))
    for name, wrong in (
        ("there", sealed),
        ("here", bytes(altered)),
        ("here", sealed[:-1]),
        ("here", sealed + b"\0"),
        ("here", b""),
    ):
        with pytest.raises(Unreadable):
            SEAL.open(name, wrong)
    with pytest.raises(Unreadable):
        Seal(Secret(bytes(32))).open("here", sealed)

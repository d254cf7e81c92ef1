"""The exact key: everything that can change an answer changes it, nothing else does."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cache.keys import cacheable, exact_key
from tiermesh.common.types import CacheControl, ChatMessage, Digests, Quality, Request, Sampling

BASE = Request("hi", 8, sampling=Sampling(temperature=0.5, seed=3))
DIGESTS = Digests("m", "t", "c")

CHANGES: dict[str, Any] = {
    "prompt": "hi ",
    "max_tokens": 9,
    "stop": ("x",),
    "stop_ids": (4,),
    "logprobs": True,
    "top_logprobs": 2,
}
SAMPLING_CHANGES: dict[str, Any] = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "seed": 4,
    "logit_bias": ((7, 1.0),),
}
OF_THE_CALL = {"model", "tier", "deadline_s", "quality", "delta", "cache", "request_id", "sampling"}


def key(request: Request = BASE, tenant: str = "a", digests: Digests = DIGESTS, **more: str) -> str:
    return exact_key(request, tenant, digests, **more).digest


def test_every_field_of_a_request_is_decided_about() -> None:
    assert {f.name for f in fields(Request)} == set(CHANGES) | OF_THE_CALL
    assert {f.name for f in fields(Sampling)} == set(SAMPLING_CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_what_shapes_the_answer_changes_the_key(name: str) -> None:
    assert key(replace(BASE, **{name: CHANGES[name]})) != key()


@pytest.mark.parametrize("name", SAMPLING_CHANGES)
def test_how_tokens_are_drawn_changes_the_key(name: str) -> None:
    assert key(replace(BASE, sampling=replace(BASE.sampling, **{name: SAMPLING_CHANGES[name]}))) != key()


def test_whose_and_which_model_changes_the_key() -> None:
    assert (
        len({key(), key(tenant="b"), *(key(digests=replace(DIGESTS, **{f: "x"})) for f in ("model", "tokenizer"))}) == 4
    )
    assert key(digests=replace(DIGESTS, template="x")) != key()
    assert key(quality="bounded:0.05") != key()


def test_how_the_call_is_made_does_not_change_the_key() -> None:
    call = replace(
        BASE,
        tier="batch",
        deadline_s=3.0,
        request_id="r",
        model="m",
        cache=CacheControl.REFRESH,
        quality=Quality.EXACT,
        delta=0.1,
    )
    assert key(call) == key()
    assert key(replace(BASE, stop=("a", "b"))) == key(replace(BASE, stop=("b", "a")))


def test_a_greedy_answer_ignores_filters_and_seed_but_not_bias_and_penalties() -> None:
    greedy = replace(BASE, sampling=Sampling())
    assert key(replace(greedy, sampling=Sampling(seed=9, top_p=0.1, top_k=3, min_p=0.5))) == key(greedy)
    assert key(replace(greedy, sampling=Sampling(repetition_penalty=1.2))) != key(greedy)
    biased = [replace(greedy, sampling=Sampling(logit_bias=((i, x),))) for i, x in ((1, 2.0), (2, 1.0), (1, 2.5))]
    assert len({key(greedy), *map(key, biased)}) == 4


PROMPTS = st.one_of(
    st.text(max_size=6),
    st.lists(st.integers(0, 99), max_size=4).map(tuple),
    st.lists(
        st.builds(ChatMessage, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=4)), max_size=3
    ).map(tuple),
)


@given(PROMPTS, PROMPTS)
def test_different_prompts_never_share_a_key(one: Any, other: Any) -> None:
    same = one == other and (bool(one) or isinstance(one, str) == isinstance(other, str))
    assert (key(replace(BASE, prompt=one)) == key(replace(BASE, prompt=other))) == same


def test_only_a_function_of_the_request_may_be_kept() -> None:
    assert cacheable(Request("x", 1), seed_given=False)
    assert cacheable(BASE, seed_given=True)
    assert not cacheable(BASE, seed_given=False)
    assert not cacheable(Request("x", 1, logprobs=True, top_logprobs=1), seed_given=False)
    assert not cacheable(replace(BASE, sampling=Sampling(temperature=1.0)), seed_given=True)

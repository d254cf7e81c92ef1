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


FLOATS = st.floats(0.0, 2.0, allow_nan=False)
REQUESTS = st.builds(
    Request,
    prompt=PROMPTS,
    max_tokens=st.integers(1, 64),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.5, 1.0]),
        top_p=st.sampled_from([0.5, 1.0]),
        top_k=st.integers(0, 3),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=FLOATS,
        presence_penalty=FLOATS,
        frequency_penalty=FLOATS,
        seed=st.integers(0, 2**64 - 1),
        logit_bias=st.dictionaries(st.integers(0, 3), st.sampled_from([-1.0, 0.0, 2.5]), max_size=2).map(
            lambda bias: tuple(sorted(bias.items()))
        ),
    ),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=3).map(tuple),
    stop_ids=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    logprobs=st.booleans(),
    top_logprobs=st.integers(0, 2),
)
ANSWERING = ["prompt", "max_tokens", "stop", "stop_ids", "logprobs", "top_logprobs"]
DRAWING = [f.name for f in fields(Sampling)]
ONLY_SAMPLED = {"temperature", "top_p", "top_k", "min_p", "seed"}


def equal_forms(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a field mean the same."""
    if name in ("stop", "stop_ids"):
        return set(one) == set(other)
    if name == "prompt" and not one and not other:
        return isinstance(one, str) == isinstance(other, str)
    return bool(one == other)


@given(REQUESTS, REQUESTS, st.sampled_from(ANSWERING))
def test_any_one_field_from_another_request_changes_the_key_unless_it_means_the_same(
    mine: Request, theirs: Request, name: str
) -> None:
    mixed = replace(mine, **{name: getattr(theirs, name)})
    assert (key(mixed) == key(mine)) == equal_forms(name, getattr(mine, name), getattr(theirs, name))


@given(REQUESTS, REQUESTS, st.sampled_from(DRAWING))
def test_any_one_way_of_drawing_from_another_request_changes_the_key_where_it_plays_a_part(
    mine: Request, theirs: Request, name: str
) -> None:
    mixed = replace(mine, sampling=replace(mine.sampling, **{name: getattr(theirs.sampling, name)}))
    same = getattr(mine.sampling, name) == getattr(theirs.sampling, name)
    idle = name in ONLY_SAMPLED and mine.sampling.greedy and mixed.sampling.greedy
    assert (key(mixed) == key(mine)) == (same or idle)


@given(REQUESTS, st.randoms())
def test_equal_forms_of_a_request_have_one_key(request: Request, random: Any) -> None:
    stop, stop_ids = [*request.stop, *request.stop[:1]], [*request.stop_ids, *request.stop_ids[:1]]
    random.shuffle(stop)
    random.shuffle(stop_ids)
    zero = {n: -0.0 for n in ("presence_penalty", "frequency_penalty") if getattr(request.sampling, n) == 0}
    other = replace(request, stop=tuple(stop), stop_ids=tuple(stop_ids), sampling=replace(request.sampling, **zero))
    assert key(other) == key(request)


def test_a_character_is_not_the_two_surrogates_that_json_writes_for_it() -> None:
    assert key(replace(BASE, prompt="\U0001f600")) != key(replace(BASE, prompt="\ud83d\ude00"))
    assert key(tenant="\U0001f600") != key(tenant="\ud83d\ude00")


def test_the_key_names_the_model_that_a_purge_goes_by() -> None:
    assert exact_key(BASE, "a", DIGESTS).model == "m"

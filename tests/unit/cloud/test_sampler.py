"""The sampler against exact enumeration at a small vocabulary, and against the distributions it claims."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tiermesh.cloud.adjust import adjust
from tiermesh.cloud.filters import HEADS, allowed, allowed_head
from tiermesh.cloud.sampler import Row, choose
from tiermesh.cloud.tally import Seen, Tally
from tiermesh.common.noise import gumbel
from tiermesh.common.types import Sampling
from tiermesh.edge.sampling import Picker

HEAD = HEADS[0]
NINES = {3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}
"""99.9 % points of chi-square by degrees of freedom."""


def filtered(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """The allowed distribution by its definition, one filter after the other, in float64."""
    scaled = logits.astype(np.float64) / s.temperature
    keep = np.ones(len(scaled), bool)
    if s.top_k:
        keep &= scaled >= np.sort(scaled)[::-1][min(s.top_k, len(scaled)) - 1]
    if s.top_p < 1:
        p = np.where(keep, np.exp(scaled - scaled.max()), 0)
        p /= p.sum()
        higher = np.array([p[p > value].sum() for value in p])
        keep &= higher < s.top_p
    if s.min_p:
        keep &= scaled - scaled.max() >= math.log(s.min_p)
    p = np.where(keep, np.exp(scaled - scaled.max()), 0)
    return p / p.sum()


SAMPLINGS = [
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.6, seed=2),
    Sampling(temperature=1.5, top_k=5, seed=3),
    Sampling(temperature=1.0, top_p=0.85, seed=4),
    Sampling(temperature=1.2, min_p=0.2, seed=5),
    Sampling(temperature=2.0, top_k=6, top_p=0.9, min_p=0.05, seed=2**64 - 1),
]
LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.9, 1.4, -0.4, 0.0, 1.1])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_draws_follow_the_filtered_distribution(sampling: Sampling) -> None:
    """8 ids, 20 000 draws, chi-square at 99.9 %; a wrong temperature must be told from the right one."""
    draws = 20_000
    rows = [Row(sampling, index) for index in range(draws)]
    counts = np.bincount([c.token for c in choose(LOGITS.expand(draws, -1), rows)], minlength=8)

    expected = filtered(LOGITS.numpy(), sampling)
    possible = expected > 0

    def statistic(probabilities: np.ndarray) -> float:
        wanted = probabilities[possible] / probabilities[possible].sum() * draws
        return float(((counts[possible] - wanted) ** 2 / wanted).sum())

    assert counts[~possible].sum() == 0
    assert statistic(expected) < NINES[int(possible.sum()) - 1]
    assert statistic(filtered(LOGITS.numpy(), Sampling(temperature=sampling.temperature * 0.8))) > 30


logit_rows = st.lists(st.integers(-32, 32).map(lambda i: i / 8), min_size=5, max_size=5, unique=True)


@given(
    logits=logit_rows,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 6),
    top_p=st.sampled_from([0.3, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.6]),
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 1000),
)
def test_each_choice_is_the_one_enumeration_gives(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int, index: int
) -> None:
    sampling = Sampling(temperature, top_p, top_k, min_p, seed=seed)
    scaled = torch.tensor([logits]) / temperature
    got = allowed(scaled, [sampling])[0]
    expected = filtered(np.array(logits, np.float32), sampling)
    before_top_p = np.sort(filtered(np.array(logits), Sampling(temperature, top_k=top_k)))[::-1].cumsum()
    assume(not np.isclose(before_top_p, top_p, atol=1e-4).any() or top_p == 1)
    assert (torch.isfinite(got).numpy() == (expected > 0)).all()
    scores = got.numpy() + gumbel(seed, index, np.arange(5))
    assert choose(torch.tensor([logits]), [Row(sampling, index)])[0].token == scores.argmax()


def test_ids_that_tie_at_the_border_are_all_kept() -> None:
    tied = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    for sampling in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.75)):
        assert torch.isfinite(allowed(tied, [sampling]))[0].tolist() == [True, True, True, True, False]


def seen(ids: list[int], prompt_length: int) -> Seen:
    return Tally(prompt_length).before(ids, len(ids))


KINDS = [
    Sampling(),
    Sampling(repetition_penalty=3.0, presence_penalty=1.0),
    Sampling(0.8, seed=5),
    Sampling(0.8, top_k=3, seed=5),
    Sampling(1.3, top_p=0.5, seed=6),
    Sampling(1.0, min_p=0.3, frequency_penalty=0.5, seed=7),
    Sampling(logit_bias=((3, 2.5), (40, -3.0))),
    Sampling(1.1, top_p=0.9, repetition_penalty=0.7, seed=8, logit_bias=((0, 1.0),)),
    Sampling(9.0, top_p=0.999, seed=9),
    Sampling(1.0, top_k=400, seed=10),
]


def row_of(kind: Sampling, ids: list[int], prompt_length: int, **more: int) -> Row:
    before = seen(ids, prompt_length) if kind.penalized else None
    return Row(kind, len(ids) - prompt_length, before, logprob=True, **more)


@pytest.mark.parametrize("vocab", [50, 1000, 5000])
def test_rows_of_unlike_requests_don_t_mix(vocab: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(30, vocab, generator=torch.Generator().manual_seed(0)) * 3
    rows = [row_of(KINDS[i % 10], [1, 2, 3, 3, 7 + i], 2, given=i, top=i % 4) for i in range(30)]
    together = choose(logits, rows)
    apart = [choose(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert [c.token for c in together] == [c.token for c in apart]
    for field in ("logprob", "given_logprob"):
        np.testing.assert_allclose([getattr(c, field) for c in together], [getattr(c, field) for c in apart], atol=1e-5)
    assert [[i for i, _ in c.top] for c in together] == [[i for i, _ in c.top] for c in apart]
    assert [len(c.top) for c in together] == [i % 4 for i in range(30)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_edge_picks_as_the_cloud_does(kind: Sampling) -> None:
    """The same logits, ids and sampling: the same pick, on a vocabulary larger than what is looked at first."""
    draws = np.random.default_rng(3)
    for length in range(2, 22):
        logits = (draws.standard_normal(1000) * 3).astype(np.float32)
        ids = draws.integers(0, 1000, length).tolist()
        state = SimpleNamespace(
            logits=logits[None, None],
            token=np.array([logits.argmax()]),
            features=np.ones((1, 3), np.float32),
            ids=ids,
        )
        pick = Picker(kind, 2, kind.adjusted, 5).pick(state)  # type: ignore[arg-type]
        (choice,) = choose(torch.from_numpy(logits)[None], [row_of(kind, ids, 2, top=5)])
        assert pick.id == choice.token
        assert [i for i, _ in pick.top] == [i for i, _ in choice.top]
        np.testing.assert_allclose([x for _, x in pick.top], [x for _, x in choice.top], atol=1e-4)
        if kind.adjusted:
            assert pick.logprob == pytest.approx(choice.logprob, abs=1e-4)


@given(
    steps=st.lists(st.integers(-40, 40), min_size=HEAD + 40, max_size=HEAD + 40),
    top_k=st.sampled_from([0, 1, 7, HEAD - 1, HEAD, HEAD + 9, 10**6]),
    top_p=st.sampled_from([0.2, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.5]),
)
def test_the_head_is_what_a_sort_leaves(steps: list[int], top_k: int, top_p: float, min_p: float) -> None:
    """Coarse values, so that many tie: either the head is all that is allowed, or it says that it is not."""
    sampling = Sampling(1.0, top_p, top_k, min_p)
    scaled = torch.tensor([steps]) / 8
    values, ids, whole = allowed_head(scaled, [sampling], HEAD)
    expected = allowed(scaled, [sampling])[0]
    kept = ids[0][torch.isfinite(values[0])]
    if whole:
        assert sorted(kept.tolist()) == torch.isfinite(expected).nonzero()[:, 0].tolist()
        assert values[0][torch.isfinite(values[0])].tolist() == expected[kept].tolist()


def test_a_narrow_filter_needs_no_sort() -> None:
    scaled = torch.linspace(0, 30, 5000)[None]
    for sampling in (Sampling(1.0, top_k=40), Sampling(1.0, top_p=0.5), Sampling(1.0, min_p=0.9)):
        assert allowed_head(scaled, [sampling], HEAD)[2].all()


def test_penalties_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.1)
    got = adjust(logits, [sampling], [seen([0, 1, 3, 3], 2)])
    np.testing.assert_allclose(got[0], [1.0, -4.0, 1.0, 0.25 - 0.25 - 0.2], atol=1e-6)


def test_bias_comes_before_the_penalties() -> None:
    """A bias that turns a logit positive makes a repetition penalty divide it; the logits given stay as they are."""
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5], [2.0, -2.0, 1.0, 0.5]])
    sampling = Sampling(repetition_penalty=2.0, logit_bias=((1, 5.0), (2, -1.5)))
    got = adjust(logits, [sampling, Sampling()], [seen([1, 2], 2), None])
    np.testing.assert_allclose(got, [[2.0, 1.5, -1.0, 0.5], [2.0, -2.0, 1.0, 0.5]], atol=1e-6)
    assert logits[0, 1] == -2.0


def test_a_bias_moves_the_distribution_as_it_says() -> None:
    """Chi-square at 99.9 % over 20 000 draws, with a negative control."""
    draws, bias = 20_000, ((2, -1.5), (5, 1.0))
    rows = [Row(Sampling(1.0, seed=21, logit_bias=bias), index) for index in range(draws)]
    counts = np.bincount([c.token for c in choose(LOGITS.expand(draws, -1), rows)], minlength=8)
    moved = LOGITS.numpy().copy()
    for i, value in bias:
        moved[i] += value

    def statistic(logits: np.ndarray) -> float:
        wanted = filtered(logits, Sampling(1.0)) * draws
        return float(((counts - wanted) ** 2 / wanted).sum())

    assert statistic(moved) < NINES[7]
    assert statistic(LOGITS.numpy()) > 100


@given(
    ids=st.lists(st.integers(0, 9), min_size=1, max_size=90),
    prompt_length=st.integers(0, 20),
    ends=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    drafts=st.lists(st.integers(0, 12), max_size=6),
)
def test_a_tally_counts_what_is_there(ids: list[int], prompt_length: int, ends: list[int], drafts: list[int]) -> None:
    """Wherever it is asked next, forwards or back."""
    tally = Tally(prompt_length)
    for end in [min(end, len(ids)) for end in ends]:
        got = tally.before(ids, end, drafts)
        whole, answer = [*ids[:end], *drafts], [*ids[min(prompt_length, end) : end], *drafts]
        assert sorted(got.ids.tolist()) == sorted(set(whole))
        assert {i: times for i, times in zip(got.ids.tolist(), got.times.tolist(), strict=True) if times} == Counter(
            answer
        )


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    sampling = Sampling(repetition_penalty=9.0, logit_bias=((0, 0.125),))
    (choice,) = choose(logits, [Row(sampling, 0, seen([2], 1), given=0, logprob=True, top=2)])
    expected = logits.log_softmax(-1)[0].tolist()
    assert choice.token == 1
    assert choice.logprob == pytest.approx(expected[1])
    assert choice.given_logprob == pytest.approx(expected[0])
    assert choice.top == ((2, pytest.approx(expected[2])), (1, pytest.approx(expected[1])))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_told(bad: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    assert [c.finite for c in choose(logits, [Row(Sampling(), 0)] * 3)] == [True, False, True]

"""The sampler against exact enumeration at a small vocabulary, and against the distributions it claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tiermesh.cloud.sampler import Row, allowed, choose, penalize
from tiermesh.common.noise import gumbel
from tiermesh.common.types import Sampling

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


def test_rows_of_unlike_requests_don_t_mix() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 50) * 3
    kinds = [
        Sampling(),
        Sampling(repetition_penalty=3.0, presence_penalty=1.0),
        Sampling(0.8, seed=5),
        Sampling(0.8, top_k=3, seed=5),
        Sampling(1.3, top_p=0.5, seed=6),
        Sampling(1.0, min_p=0.3, frequency_penalty=0.5, seed=7),
    ]
    rows = [Row(kinds[i % 6], 4 + i, [1, 2, 3, 3, 7 + i], 2, i, True) for i in range(9)]
    together = choose(logits, rows)
    apart = [choose(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert [c.token for c in together] == [c.token for c in apart]
    np.testing.assert_allclose([c.logprob for c in together], [c.logprob for c in apart], atol=1e-5)


def test_penalties_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.1)
    row = Row(sampling, 0, [0, 1, 3, 3], prompt_length=2)
    np.testing.assert_allclose(penalize(logits, [row])[0], [1.0, -4.0, 1.0, 0.25 - 0.25 - 0.2], atol=1e-6)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    (choice,) = choose(logits, [Row(Sampling(repetition_penalty=9.0), 0, [2], 1, given=0, logprob=True)])
    expected = logits.log_softmax(-1)[0].tolist()
    assert choice.token == 1
    assert choice.logprob == pytest.approx(expected[1])
    assert choice.given_logprob == pytest.approx(expected[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_told(bad: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    assert [c.finite for c in choose(logits, [Row(Sampling(), 0)] * 3)] == [True, False, True]

"""Filters, penalties and the coupled noise of the edge's sampler."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.common.noise import gumbel
from tiermesh.common.types import Sampling
from tiermesh.edge.sampling import Picker, adjust, allowed, most_probable


def state_of(logits: list[float], ids: list[int]) -> SimpleNamespace:
    """What a sequence shows after its last id."""
    row = np.asarray(logits, np.float32)
    features = np.array([figures_of(logits)], np.float32)
    return SimpleNamespace(logits=row[None, None], token=np.array([row.argmax()]), features=features, ids=ids)


def figures_of(logits: list[float]) -> tuple[float, float, float]:
    """Largest probability, margin to the second, entropy in nats."""
    p = np.exp(np.asarray(logits) - max(logits))
    p /= p.sum()
    second, first = np.sort(p)[-2:]
    return float(first), float(first - second), float(-(p * np.log(p)).sum())


LOGITS = [2.0, 1.0, 0.0, -1.0, -2.0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_k=2), [0, 1]),
        (Sampling(1.0, top_k=99), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_p=0.6), [0]),
        (Sampling(1.0, top_p=0.7), [0, 1]),
        (Sampling(5.0, top_p=0.75), [0, 1, 2, 3]),
        (Sampling(1.0, min_p=0.2), [0, 1]),
        (Sampling(2.0, min_p=0.2), [0, 1, 2, 3]),
        (Sampling(1.0, top_k=3, top_p=0.99, min_p=0.2), [0, 1]),
        (Sampling(1.0, top_p=1e-9), [0]),
    ],
)
def test_filters(sampling: Sampling, expected: list[int]) -> None:
    assert allowed(np.asarray(LOGITS, np.float32), sampling).tolist() == expected


def test_penalties_of_prompt_and_answer() -> None:
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    got = adjust(np.asarray(LOGITS, np.float32), sampling, ids=[0, 3, 1, 1], answer_start=2)
    np.testing.assert_allclose(got, [1.0, 0.5 - 0.5 - 2 * 0.25, 0.0, -2.0, -2.0])


def test_greedy_with_a_penalty_looks_at_the_logits() -> None:
    pick = Picker(Sampling(repetition_penalty=10.0), 1, True).pick(state_of(LOGITS, [0]))  # type: ignore[arg-type]
    assert pick.id == 1
    log_total = np.log(np.exp(LOGITS).sum())
    assert pick.logprob == pytest.approx(1.0 - log_total, abs=1e-5)


def test_greedy_without_penalties_takes_the_graphs_own() -> None:
    pick = Picker(Sampling(), 1, True).pick(state_of(LOGITS, [9]))  # type: ignore[arg-type]
    assert (pick.id, pick.probability) == (0, pytest.approx(np.exp(2) / np.exp(LOGITS).sum(), rel=1e-5))
    assert pick.logprob == pytest.approx(np.log(pick.probability), abs=1e-6)


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_margin_and_entropy_are_those_of_the_softmax(logits: list[float], seed: int) -> None:
    """Whoever looks at the logits finds what the graph finds, at any temperature."""
    _, margin, entropy = figures_of(logits)
    for sampling in (Sampling(0.7, seed=seed), Sampling(presence_penalty=1.0)):
        pick = Picker(sampling, 0, False).pick(state_of(logits, []))  # type: ignore[arg-type]
        assert pick.margin == pytest.approx(margin, abs=1e-5)
        assert pick.entropy == pytest.approx(entropy, abs=1e-4)
        assert 0 <= pick.margin <= 1
        assert pick.entropy >= 0


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 500), temperature=st.floats(0.1, 4.0))
@settings(max_examples=50, deadline=None)
def test_sampling_is_the_argmax_of_scaled_logits_and_noise(seed: int, index: int, temperature: float) -> None:
    sampling = Sampling(temperature, seed=seed)
    pick = Picker(sampling, 2, False).pick(state_of(LOGITS, [0] * (2 + index)))  # type: ignore[arg-type]
    scores = np.asarray(LOGITS, np.float64) / temperature + gumbel(seed, index, np.arange(5)).astype(np.float64)
    best, second = np.sort(scores)[::-1][:2]
    assert pick.id == scores.argmax() or best - second < 1e-5
    assert pick.probability == pytest.approx(np.exp(LOGITS[pick.id]) / np.exp(LOGITS).sum(), rel=1e-4)


def test_sampling_draws_from_the_softmax() -> None:
    """Chi-square over 4000 seeds, 4 degrees of freedom: 23.5 is passed once in 10,000 runs; the seeds are fixed."""
    counts = np.zeros(5)
    for seed in range(4000):
        counts[Picker(Sampling(1.0, seed=seed), 0, False).pick(state_of(LOGITS, [])).id] += 1  # type: ignore[arg-type]
    expected = 4000 * np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert ((counts - expected) ** 2 / expected).sum() < 23.5


def test_bias_comes_before_the_penalties() -> None:
    """A bias that turns a logit positive makes a repetition penalty divide it."""
    sampling = Sampling(repetition_penalty=2.0, logit_bias=((3, 5.0), (4, -1.0)))
    got = adjust(np.asarray(LOGITS, np.float32), sampling, ids=[3], answer_start=1)
    np.testing.assert_allclose(got, [2.0, 1.0, 0.0, 2.0, -3.0])
    assert Picker(Sampling(logit_bias=((4, 9.0),)), 0, False).pick(state_of(LOGITS, [])).id == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=1, logit_bias=((4, 50.0),))])
def test_the_most_probable_are_those_of_the_raw_logits(sampling: Sampling) -> None:
    pick = Picker(sampling, 0, True, 3).pick(state_of(LOGITS, []))  # type: ignore[arg-type]
    expected = np.asarray(LOGITS) - np.log(np.exp(LOGITS).sum())
    assert [i for i, _ in pick.top] == [0, 1, 2]
    np.testing.assert_allclose([x for _, x in pick.top], expected[:3], rtol=1e-5)
    assert pick.logprob == pytest.approx(expected[pick.id], rel=1e-5)
    assert len(most_probable(np.asarray(LOGITS, np.float32), 20)) == 5

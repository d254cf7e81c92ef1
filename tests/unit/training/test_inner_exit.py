"""The inner exit: what is trained is what the exported graph computes, and its measure counts what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tiermesh.edge.artifact import read_artifact
from tiermesh.edge.model import EdgeModel
from tiermesh.edge.split import SplitState
from tiermesh.training.batches import Batch
from tiermesh.training.exit_files import write_exit
from tiermesh.training.export_edge import export_edge
from tiermesh.training.inner_exit import InnerExit, distil_step, listed, measure, most_said
from tiermesh.training.random_model import write_random_model

SHORTLIST = torch.arange(100, 250)
IDS = np.random.default_rng(5).integers(3, 320, 24).tolist()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"), layers=3)


@pytest.fixture(scope="module")
def edge(model_dir: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(model_dir).requires_grad_(False)


def exit_of(edge: LlamaForCausalLM) -> InnerExit:
    torch.manual_seed(1)
    inner = InnerExit(edge, SHORTLIST, rank=32)
    with torch.no_grad():
        inner.up.normal_(std=0.1)
        inner.other.normal_(std=0.1)
    return inner


def test_the_exported_exit_is_the_trained_one(model_dir: Path, edge: LlamaForCausalLM, tmp_path: Path) -> None:
    inner = exit_of(edge)
    batch = Batch(torch.tensor([IDS]), torch.ones(1, len(IDS) - 1))
    write_exit(model_dir, inner.tensors(), 1, measure(edge, inner, 1, [batch]))
    export_edge(model_dir, tmp_path)
    state = EdgeModel.load(read_artifact(tmp_path)).sequence()
    assert isinstance(state, SplitState)
    with torch.no_grad():
        hidden = edge(torch.tensor([IDS]), output_hidden_states=True).hidden_states[1]
        expected = inner(hidden).softmax(-1)[0]
    places = [*SHORTLIST.tolist(), -1]
    agrees = 0
    for place in range(1, len(IDS)):
        state.catch_up(IDS[:place])
        guess = state.peek((IDS[place],))
        best = expected[place].max()
        agrees += guess.id == places[int(expected[place].argmax())]
        assert abs(guess.probability - best) < 0.1  # weights and activations of 8 bits
    assert agrees >= 0.8 * (len(IDS) - 1)


def test_targets_keep_all_the_probability() -> None:
    logits = torch.randn(2, 3, 320, generator=torch.Generator().manual_seed(0))
    target = listed(logits, SHORTLIST).exp()
    torch.testing.assert_close(target.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(target[..., :-1], logits.softmax(-1)[..., SHORTLIST])


def test_distilling_lowers_the_divergence(edge: LlamaForCausalLM) -> None:
    inner = exit_of(edge)
    batch = Batch(torch.tensor([IDS]), torch.ones(1, len(IDS) - 1))
    optimizer = torch.optim.AdamW(inner.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        losses.append(distil_step(edge, inner, 1, batch, 1)[0])
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


def test_the_curve_counts_what_the_exit_would_draft(edge: LlamaForCausalLM) -> None:
    inner = exit_of(edge)
    batch = Batch(torch.tensor([IDS, IDS[::-1]]), torch.ones(2, len(IDS) - 1))
    with torch.no_grad():
        seen = edge(batch.ids, output_hidden_states=True)
        probabilities = inner(seen.hidden_states[1][:, :-1]).softmax(-1)
    top = probabilities.max(-1)
    for point in measure(edge, inner, 1, [batch]):
        drafted = right = 0
        for row in range(2):
            for place in range(len(IDS) - 1):
                index = int(top.indices[row, place])
                if index < len(SHORTLIST) and top.values[row, place] >= point.min_probability:
                    drafted += 1
                    right += int(SHORTLIST[index]) == int(seen.logits[row, place].argmax())
        assert point.drafted == pytest.approx(drafted / (2 * (len(IDS) - 1)))
        assert point.acceptance == pytest.approx(right / drafted)


def test_the_shortlist_holds_what_is_said_most() -> None:
    batch = Batch(torch.tensor([[3, 7, 7, 9, 9, 9]]), torch.tensor([[0.1, 1.0, 1.0, 1.0, 1.0]]))
    assert {7, 9} <= set(most_said([batch], 40, 5).tolist())
    assert len(most_said([batch], 40, 100)) == 40

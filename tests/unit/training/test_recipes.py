"""Batches, optimizer and checkpoints: the pieces that the recipes are made of."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tiermesh.training.batches import PROMPT_WEIGHT, Batch, code_batches, command_batches
from tiermesh.training.checkpoint import load_checkpoint, save_checkpoint
from tiermesh.training.muon import Muon, orthogonalize
from tiermesh.training.tokenizer import EOS, train_tokenizer

TOKENIZER = train_tokenizer(['[{"device":"light.kitchen","set":{"brightness":40}}]\n'] * 2, 300)


def equal(first: Batch, second: Batch) -> bool:
    return torch.equal(first.ids, second.ids) and torch.equal(first.weights, second.weights)


def test_command_batches_go_on_where_they_stopped() -> None:
    begun = list(islice(command_batches(TOKENIZER, "train", 1, 4000), 4))
    resumed = next(command_batches(TOKENIZER, "train", 1, 4000, skip=3))
    assert equal(begun[3], resumed)
    assert not equal(begun[2], begun[3])


def test_answers_weigh_full_prompts_little_and_padding_nothing() -> None:
    batch = next(command_batches(TOKENIZER, "train", 1, 4000))
    for ids, weights in zip(batch.ids.tolist(), batch.weights, strict=True):
        end = ids.index(EOS)
        answer = TOKENIZER.decode([token for token, weight in zip(ids[1:], weights, strict=True) if weight == 1])
        assert answer.startswith("\n[{")
        assert answer.endswith("}]")
        assert weights[end - 1] == 1  # the end itself is learnt
        assert not weights[end:].any()
        assert {round(weight, 3) for weight in set(weights.tolist())} <= {0.0, PROMPT_WEIGHT, 1.0}


def test_code_windows_come_once_per_pass_and_resume() -> None:
    stream = np.arange(1, 101, dtype=np.uint16)
    first = list(islice(code_batches(stream, 0, 3, 10), 3))
    starts = torch.cat([batch.ids[:, 0] for batch in first]).tolist()
    assert sorted(starts) == [1, 11, 21, 31, 41, 51, 61, 71, 81]
    assert equal(next(code_batches(stream, 0, 3, 10, skip=2)), first[2])
    with pytest.raises(ValueError, match="don't fill"):
        next(code_batches(stream[:25], 0, 3, 10))


@pytest.mark.parametrize("shape", [(2, 24, 64), (2, 64, 24), (1, 16, 16)])
def test_updates_are_about_orthogonal(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalize(matrices))
    assert 0.3 < singular.min() <= singular.max() < 1.3


def test_muon_lowers_a_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 8))
    wanted = torch.randn(16, 8, generator=generator)
    optimizer, losses = Muon([weight], lr=0.05), []
    for _ in range(60):
        loss = (weight - wanted).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_checkpoints_restore_model_and_momentum(tmp_path: Path) -> None:
    def trained() -> tuple[torch.nn.Linear, Muon]:
        torch.manual_seed(1)
        model = torch.nn.Linear(4, 4, bias=False)
        return model, Muon(model.parameters(), lr=0.1)

    model, optimizer = trained()
    path = tmp_path / "run.pt"
    assert load_checkpoint(path, model, [optimizer]) == (0, 0)
    model.weight.square().sum().backward()
    optimizer.step()
    save_checkpoint(path, model, [optimizer], 7, 900)
    again, restored = trained()
    assert load_checkpoint(path, again, [restored]) == (7, 900)
    for one, moment in ((model, optimizer), (again, restored)):
        one.weight.grad = torch.ones(4, 4)
        moment.step()
    assert torch.equal(model.weight, again.weight)

"""Exit blocks: what they are distilled on, and an edge made of any Llama directory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from tiermesh.common.errors import ModelDirError
from tiermesh.edge.artifact import read_artifact
from tiermesh.training import exits
from tiermesh.training.exits import make_edge, new_edge
from tiermesh.training.export_edge import export_edge
from tiermesh.training.own_text import Asked, continued, file_text
from tiermesh.training.random_model import write_random_model
from tiermesh.training.tokenizer import EOS

IDS = np.random.default_rng(5).integers(3, 320, 40).tolist()


@pytest.fixture(scope="module")
def cloud_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("cloud"), layers=4)


@pytest.fixture(scope="module")
def cloud(cloud_dir: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(cloud_dir).requires_grad_(False)


def test_own_text_is_greedy_and_only_it_has_weight(cloud: LlamaForCausalLM) -> None:
    prompts = [IDS[:6], IDS[6:12], IDS[12:20], IDS[20:39]]
    batches = list(continued(cloud, Asked(prompts, 8), rows=3))
    assert [batch.ids.shape[0] for batch in batches] == [3, 1]
    rows = [(row, weights) for batch in batches for row, weights in zip(batch.ids, batch.weights, strict=True)]
    for prompt, (row, weights) in zip(prompts, rows, strict=True):
        assert row[: len(prompt)].tolist() == prompt
        said = row[1:][weights == 1].tolist()
        assert not weights[: len(prompt) - 1].any()
        assert 0 < len(said) <= 8
        assert EOS not in said[:-1]
        assert len(said) == 8 or said[-1] == EOS
        with torch.no_grad():
            chosen = cloud(row[None]).logits[0, :-1].argmax(-1)
        assert chosen[weights == 1].tolist() == said


def test_sampled_text_is_drawn_by_its_seed(cloud: LlamaForCausalLM) -> None:
    def draw(seed: int) -> list[list[int]]:
        return [batch.ids.tolist() for batch in continued(cloud, Asked([IDS[:6]] * 4, 16), 1.0, seed=seed)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_prompts_of_a_file_are_plain_or_json_and_some_are_kept_apart(cloud_dir: Path, tmp_path: Path) -> None:
    lines = [f"dim light {n}" if n % 2 else json.dumps({"prompt": f"dim light {n}"}) for n in range(30)]
    path = tmp_path / "prompts"
    path.write_text("\n".join(["", *lines, "7", "[1]"]))
    text = file_text(path, cloud_dir / "tokenizer.json", 512)
    learnt, kept = ({tuple(ids) for ids in part[0].prompts} for part in (text.asked, text.heldout))
    assert len(learnt) + len(kept) == 32
    assert not learnt & kept
    path.write_text("one\ntwo\n")
    with pytest.raises(ModelDirError, match="has 2 prompts; give 20"):
        file_text(path, cloud_dir / "tokenizer.json", 512)


def test_an_edge_of_any_llama_shares_the_lower_layers(cloud: LlamaForCausalLM) -> None:
    short = new_edge(cloud, 1)
    assert short.config.num_hidden_layers == 2
    with torch.no_grad():
        ids = torch.tensor([IDS])
        mine = short(ids, output_hidden_states=True).hidden_states[1]
        theirs = cloud(ids, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(mine, theirs)
    assert functional.cosine_similarity(short.lm_head.weight, cloud.lm_head.weight).min() > 0.999


def test_an_edge_is_made_of_any_directory_with_prompts(
    cloud_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "WORK", tmp_path / "work")
    prompts, out = tmp_path / "prompts", tmp_path / "edge"
    prompts.write_text("\n".join(f"turn the heating in room {n} down" for n in range(40)))
    make_edge(cloud_dir, out, (1, 2), 3000, prompts)
    export_edge(out, tmp_path / "artifact")
    inner = read_artifact(tmp_path / "artifact").inner_exit
    assert inner is not None
    assert inner.layers == 1
    with pytest.raises(ModelDirError, match="no exit block after 4"):
        make_edge(cloud_dir, out, (4,), 3000, prompts)


def test_another_tokenizer_needs_prompts(cloud_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = write_random_model(tmp_path / "work", vocab=300)
    np.save(work / "code.npy", np.arange(5000, dtype=np.uint16) % 300)
    monkeypatch.setattr(exits, "WORK", work)
    with pytest.raises(ModelDirError, match="--prompts"):
        make_edge(cloud_dir, tmp_path / "edge", (2,), 1000, None)

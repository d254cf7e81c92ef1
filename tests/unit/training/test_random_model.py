"""The random model is a real Hugging Face directory with decided greedy choices."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tiermesh.training.random_model import write_random_model


@pytest.mark.parametrize("tie", [True, False])
def test_transformers_loads_it_and_greedy_margins_are_clear(tmp_path: Path, tie: bool) -> None:
    model = LlamaForCausalLM.from_pretrained(write_random_model(tmp_path, tie=tie))
    ids = torch.randint(3, 320, (4, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids).logits
    top = logits.topk(2).values
    assert (top[..., 0] - top[..., 1] < 0.01).float().mean() < 0.05
    assert 0.05 < logits.softmax(-1).amax(-1).median() < 0.9  # neither flat nor frozen: samples vary


def test_seeds_differ_in_weights_and_agree_in_tokenizer(tmp_path: Path) -> None:
    first, second = (write_random_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def test_tokenizer_adds_bos_and_renders_messages(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_random_model(tmp_path))
    text = "héllo  40\n    x\n\n"
    assert tokenizer(text).input_ids[0] == 0
    assert tokenizer.decode(tokenizer(text).input_ids[1:]) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "dim it"}], tokenize=False)
    assert chat == "<|bos|>dim it\n"


def test_shapes_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="don't divide"):
        write_random_model(tmp_path, heads=3)
    with pytest.raises(ValueError, match="at least 259"):
        write_random_model(tmp_path, vocab=200)

"""Train the starter's cloud model: 14 M parameters, commands and code, about an hour on two idle cores.

`python -P -m tiermesh.training.pretrain` goes on from `.training/cloud.pt` when that is there. With a smaller shape
and another `--out` it trains a small model on its own, to compare an edge that shares the cloud's trunk with.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from .batches import Batch, code_batches, code_stream, command_batches
from .checkpoint import load_checkpoint, save_checkpoint
from .commands import generate
from .corpus import read_corpus, write_manifest
from .muon import Muon
from .precision import autocast
from .tokenizer import BOS, EOS, PAD, save_tokenizer, train_tokenizer

WORK = Path(".training")
MAX_LENGTH = 1024
CODE_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Mix:
    """What a step is made of."""

    command_tokens: int
    """Padding included."""
    code_rows: int
    """Windows of CODE_LENGTH tokens."""
    command_weight: float
    """Of the commands' loss; code has the rest."""
    levels: tuple[int, ...]
    """Of the commands, drawn evenly from these."""


MIXES = (
    (0.0, Mix(3600, 4, 0.5, (1, 2, 2, 2, 3, 3, 3, 3))),
    (0.27, Mix(5120, 2, 0.75, (1, 2, 2, 2, 3, 3, 3, 3))),
    (0.81, Mix(5120, 2, 0.75, (1, 2, 2, 3, 3, 3, 3, 3))),
)
"""From which share of the budget on. Both kinds teach the language of each first. Then commands, which need exact
answers, lead: with even weights the gradient was code's (loss 4.2 against 0.35), and levels 2 and 3 stood at 48 and
27 %. At last level 3, when the others stand at 100 and 98 % and it at 69 %."""
PEAK_MUON, PEAK_ADAM = 4e-3, 4e-3
_SAVE_EVERY = 20


def shape(layers: int = 8, hidden: int = 384) -> LlamaConfig:
    """The starter's cloud model, or one of other layers and width (a multiple of 128)."""
    return LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=-(-hidden * 8 // 3 // 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def prepare(work: Path) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer and the training stream of code, made once and kept in `work` beside their manifest."""
    work.mkdir(exist_ok=True)
    if not (work / "code.npy").exists():
        corpus = read_corpus()
        write_manifest(corpus, work / "manifest.json")
        texts = [source.text for source in corpus.train]
        lines = (f"{command.text}\n{command.truth}\n" for command in islice(generate("train", 7), 30_000))
        tokenizer = train_tokenizer([*texts[::6], *lines])
        save_tokenizer(tokenizer, work, MAX_LENGTH)
        np.save(work / "code.npy", code_stream(tokenizer, texts, 9_000_000))
    return Tokenizer.from_file(str(work / "tokenizer.json")), np.load(work / "code.npy")


def mix_at(progress: float) -> Mix:
    """The mix at a share of the budget."""
    return next(mix for begins, mix in reversed(MIXES) if progress >= begins)


def mixed_batches(
    tokenizer: Tokenizer, stream: np.ndarray, mix: Mix, seed: int, skip: int
) -> Iterator[tuple[Batch, Batch]]:
    """Pairs of a batch of commands and a batch of code, from step `skip` on."""
    commands = command_batches(tokenizer, "train", seed, mix.command_tokens, skip, mix.levels)
    return zip(commands, code_batches(stream, seed, mix.code_rows, CODE_LENGTH, skip), strict=True)


def weighted_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean negative log-likelihood in nats per weighted token; logits [rows, length, vocab]."""
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    return (losses * batch.weights.flatten()).sum() / batch.weights.sum()


def rate(progress: float) -> float:
    """Share of the peak learning rate: 2 % warm-up, level, and a linear fall over the last 60 %."""
    return min(1.0, progress / 0.02 + 0.05, max(0.02, (1.0 - progress) / 0.6))


def optimizers_for(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    inner = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 2 and "layers" in name]
    outer = [parameter for name, parameter in model.named_parameters() if parameter.ndim < 2 or "layers" not in name]
    return [Muon(inner, lr=PEAK_MUON), torch.optim.AdamW(outer, lr=PEAK_ADAM, betas=(0.9, 0.95), weight_decay=0.0)]


def train(model: LlamaForCausalLM, work: Path, tokens: int, checkpoint: Path) -> None:
    """Train until `tokens` ids were seen."""
    tokenizer, stream = prepare(work)
    optimizers = optimizers_for(model)
    step, seen = load_checkpoint(checkpoint, model, optimizers)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(checkpoint.stem, total=tokens, completed=seen)
        mix = mix_at(seen / tokens)
        batches = mixed_batches(tokenizer, stream, mix, 1, step)
        while seen < tokens:
            if mix is not mix_at(seen / tokens):
                mix = mix_at(seen / tokens)
                batches = mixed_batches(tokenizer, stream, mix, 1, step)
            commands, code = next(batches)
            for optimizer, peak in zip(optimizers, (PEAK_MUON, PEAK_ADAM), strict=True):
                optimizer.param_groups[0]["lr"] = peak * rate(seen / tokens)
            losses = train_step(model, optimizers, ((commands, mix.command_weight), (code, 1 - mix.command_weight)))
            step, seen = step + 1, seen + commands.ids.numel() + code.ids.numel()
            described = f"step {step} commands {losses[0]:.3f} code {losses[1]:.3f}"
            progress.update(bar, completed=seen, description=described)
            if step % _SAVE_EVERY == 0:
                progress.console.print(described, f"tokens {seen}")
                save_checkpoint(checkpoint, model, optimizers, step, seen)
        save_checkpoint(checkpoint, model, optimizers, step, seen)


def train_step(
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], batches: tuple[tuple[Batch, float], ...]
) -> list[float]:
    """One update on the weighted mean of the batches' losses; returns each loss."""
    losses = []
    for batch, weight in batches:
        with autocast():
            logits = model(batch.ids, use_cache=False).logits
        loss = weighted_loss(logits.float(), batch)
        (loss * weight).backward()
        losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return losses


def save_model(model: LlamaForCausalLM, tokenizer_from: Path, out: Path) -> None:
    """Write a Hugging Face directory: bfloat16 weights, configs and the tokenizer's files."""
    out.mkdir(parents=True, exist_ok=True)
    cast(torch.nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((tokenizer_from / name).read_bytes())
    (out / "model.safetensors").chmod(0o644)  # written for its owner alone, while services run as another user


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the starter's cloud model, or one of another shape.")
    parser.add_argument("--tokens", type=int, default=1_700_000, help="budget in tokens, padding included")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=_width, default=384)
    parser.add_argument("--out", type=Path, default=WORK / "cloud", help="its checkpoint lies beside it, as OUT.pt")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape(options.layers, options.hidden))
    train(model, WORK, options.tokens, options.out.with_suffix(".pt"))
    save_model(model, WORK, options.out)


def _width(text: str) -> int:
    if not text.isdecimal() or int(text) % 128 or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a multiple of 128")
    return int(text)


if __name__ == "__main__":
    main()

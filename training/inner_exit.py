"""Train an inner exit for an edge model: a low-rank adapter after a lower layer that foretells the full depth's token.

`python -P -m tiermesh.training.inner_exit [--edge DIR] [--layers 2]` goes on from the checkpoint of the same edge in
`.training/`, if there is one, and writes `inner_exit.*` into the edge's directory; `exits.py` runs it too.

A full block would cost more than it saves: in the starter one layer is as dear as one head. So the exit is an adapter
of rank 128 (0.1 of a layer), and its head has rows for the thousand ids that the edge says most (0.25 of the head), and
one row for all others. A wrong guess costs time and changes no text, so nothing need be exact here.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, cycle, islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from ..common.errors import ModelDirError
from ..common.model_dir import file_digest
from ..edge.artifact import ExitPoint
from .batches import Batch
from .checkpoint import load_checkpoint, save_checkpoint
from .exit_files import write_exit
from .muon import Muon
from .own_text import Asked, Text, continued, starter_text
from .precision import autocast
from .pretrain import WORK

LAYERS = 2
TOKENS = 250_000
RANK, SHORTLIST = 128, 1023
PEAK = 4e-3
_OWN = 6
"""Batches of each kind of prompts that the edge continues."""
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class InnerExit(torch.nn.Module):
    """Logits over a shortlist of ids and, last, all others, from hidden states of a lower layer."""

    def __init__(self, edge: LlamaForCausalLM, shortlist: Tensor, rank: int = RANK) -> None:
        super().__init__()
        width, final = edge.config.hidden_size, edge.model.norm.weight.detach()
        self.epsilon = edge.config.rms_norm_eps
        self.norm = torch.nn.Parameter(torch.ones(width))
        self.down = torch.nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.up = torch.nn.Parameter(torch.zeros(width, rank))
        self.final = torch.nn.Parameter(final.clone())
        self.other = torch.nn.Parameter(torch.zeros(width))
        self.register_buffer("shortlist", shortlist)
        self._rows = edge.lm_head.weight.detach()[shortlist]

    def forward(self, hidden: Tensor) -> Tensor:
        """[…, hidden] → […, N + 1]."""
        width = hidden.shape[-1:]
        low = functional.linear(functional.rms_norm(hidden, width, self.norm, self.epsilon), self.down)
        hidden = hidden + functional.linear(functional.silu(low), self.up)
        normed = functional.rms_norm(hidden, width, self.final, self.epsilon)
        return functional.linear(normed, torch.cat([self._rows, self.other[None]]))

    def tensors(self) -> dict[str, np.ndarray]:
        """What `write_exit` takes."""
        named = {f"{name}.weight": parameter.detach().numpy() for name, parameter in self.named_parameters()}
        return {**named, "shortlist": cast(Tensor, self.shortlist).numpy()}


def listed(logits: Tensor, shortlist: Tensor) -> Tensor:
    """Log-probabilities [rows, S, N + 1] of the shortlist and of all other ids, from the full depth's logits."""
    log = logits.float().log_softmax(-1)[..., shortlist]
    rest = (1.0 - log.exp().sum(-1, keepdim=True)).clamp(min=1e-6).log()
    return torch.cat([log, rest], -1)


def most_said(batches: Iterable[Batch], vocab: int, size: int = SHORTLIST) -> Tensor:
    """The ids that are said most where the weight is 1, in ascending order; int64 [at most size]."""
    counts: Counter[int] = Counter(range(vocab))
    for batch in batches:
        counts.update(batch.ids[:, 1:][batch.weights == 1].tolist())
    return torch.tensor(sorted(token for token, _ in counts.most_common(min(size, vocab))))


def distil_step(edge: LlamaForCausalLM, inner: InnerExit, layers: int, batch: Batch, parts: int) -> tuple[float, float]:
    """Add one batch's gradients, of `parts`; KL in nats per weighted token, and how often the first choice agrees."""
    with torch.no_grad(), autocast():
        seen = edge(batch.ids, use_cache=False, output_hidden_states=True)
    with autocast():
        logits = inner(seen.hidden_states[layers][:, :-1].float())
    target = listed(seen.logits[:, :-1], cast(Tensor, inner.shortlist))
    log = logits.float().log_softmax(-1)
    losses = functional.kl_div(log, target, reduction="none", log_target=True).sum(-1)
    loss = (losses * batch.weights).sum() / batch.weights.sum()
    (loss / parts).backward()
    counted = batch.weights == 1
    return loss.item(), (log.argmax(-1) == target.argmax(-1))[counted].float().mean().item()


@torch.no_grad()
def measure(edge: LlamaForCausalLM, inner: InnerExit, layers: int, batches: Iterable[Batch]) -> list[ExitPoint]:
    """What drafting from each probability on gives on these texts, over all tokens of weight 1."""
    sure, right = [], []
    ids = torch.cat([cast(Tensor, inner.shortlist), torch.tensor([-1])])
    for batch in batches:
        seen = edge(batch.ids, use_cache=False, output_hidden_states=True)
        top = inner(seen.hidden_states[layers][:, :-1]).softmax(-1).max(-1)
        counted, guessed = batch.weights == 1, ids[top.indices]
        sure.append(torch.where(guessed < 0, torch.zeros(()), top.values)[counted])
        right.append((guessed == seen.logits[:, :-1].argmax(-1))[counted].float())
    probabilities, stands = torch.cat(sure), torch.cat(right)
    points = []
    for threshold in _THRESHOLDS:
        drafted = probabilities >= threshold
        if drafted.any():
            points.append(ExitPoint(threshold, drafted.float().mean().item(), stands[drafted].mean().item()))
    return points


def train(
    inner: InnerExit,
    kinds: tuple[str, ...],
    step_of: Callable[[Batch, int], tuple[float, float]],
    groups: Callable[[int], Iterable[tuple[Batch, ...]]],
    tokens: int,
    checkpoint: Path,
) -> None:
    """Distil until `tokens` ids were seen; `groups` gives each step's batches, one of each kind, from a step on."""
    matrices = [parameter for parameter in inner.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in inner.parameters() if parameter.ndim < 2]
    optimizers = [Muon(matrices, lr=PEAK), torch.optim.AdamW(vectors, lr=PEAK, weight_decay=0.0)]
    step, seen = load_checkpoint(checkpoint, inner, optimizers)
    batches = iter(groups(step))
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task("inner exit", total=tokens, completed=seen)
        while seen < tokens:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = PEAK * max(0.02, 1.0 - seen / tokens)
            group = next(batches)
            report = [step_of(batch, len(group)) for batch in group]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step, seen = step + 1, seen + sum(batch.ids.numel() for batch in group)
            words = [f"{name} {kl:.3f} {same:.3f}" for name, (kl, same) in zip(kinds, report, strict=True)]
            described = " ".join([f"step {step} KL and same:", *words])
            progress.update(bar, completed=seen, description=described)
            if step % 20 == 0 or seen >= tokens:
                progress.console.print(described, f"tokens {seen}")
                save_checkpoint(checkpoint, inner, optimizers, step, seen)


def make_inner_exit(
    edge_dir: Path, text: Text, work: Path, layers: int = LAYERS, tokens: int = TOKENS
) -> list[ExitPoint]:
    """Train an exit after `layers` layers and write it into `edge_dir`; returns what it does on held-out text.

    `text` is in the ids of the edge's tokenizer. Raises ModelDirError when the edge has too few layers.
    """
    edge = LlamaForCausalLM.from_pretrained(edge_dir, dtype=torch.float32).requires_grad_(False)
    if not 0 < layers < edge.config.num_hidden_layers:
        raise ModelDirError(f"{edge_dir} has {edge.config.num_hidden_layers} layers: no exit after layer {layers}")
    torch.manual_seed(0)
    own = [batch for asked in text.asked for batch in islice(continued(edge, _spread(asked)), _OWN)]
    first = list(chain.from_iterable(islice(text.given(0), 12)))
    inner = InnerExit(edge, most_said([*own, *first], edge.config.vocab_size))
    weights = "".join(file_digest(path) for path in sorted(edge_dir.glob("model*.safetensors")))
    checkpoint = work / f"inner-{layers}-{weights[:12]}.pt"

    def groups(step: int) -> Iterable[tuple[Batch, ...]]:
        given = text.given(step)
        return ((*group, batch) for group, batch in zip(given, islice(cycle(own), step, None), strict=False))

    kinds = (*text.kinds, "own")
    train(inner, kinds, lambda batch, parts: distil_step(edge, inner, layers, batch, parts), groups, tokens, checkpoint)
    curve = measure(edge, inner, layers, (batch for asked in text.heldout for batch in continued(edge, asked)))
    write_exit(edge_dir, inner.tensors(), layers, curve)
    return curve


def _spread(asked: Asked) -> Asked:
    """Prompts of all lengths, no more than are needed."""
    wanted = _OWN * 64
    return Asked(asked.prompts[:: max(1, len(asked.prompts) // wanted)][:wanted], asked.new)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an inner exit for an edge model.")
    parser.add_argument("--edge", type=Path, default=WORK / "edge_hf", help="the edge model; gains the exit")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the edge model, below the exit")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="budget in tokens, padding included")
    options = parser.parse_args()
    text = starter_text(WORK, options.edge / "tokenizer.json")
    for point in make_inner_exit(options.edge, text, WORK, options.layers, options.tokens):
        print(f"from {point.min_probability:.2f}: {point.drafted:.3f} drafted, {point.acceptance:.3f} of them stand")


if __name__ == "__main__":
    main()

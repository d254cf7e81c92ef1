"""Train an inner exit for an edge model: a low-rank adapter after a lower layer that foretells the full depth's token.

`python -P -m tiermesh.training.inner_exit [--edge DIR] [--layers 2]` goes on from the checkpoint of the same edge in
`.training/`, if there is one, and writes `inner_exit.*` into the edge's directory; `exits.py` runs it too.

A full block would cost more than it saves: in the starter one layer is as dear as one head. So the exit is an adapter
of rank 128 (0.1 of a layer), and its head has rows for the thousand ids that the edge says most (0.25 of the head), and
one row for all others. A wrong guess costs time and changes no text, so nothing need be exact here.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from ..common.errors import ModelDirError
from ..common.model_dir import file_digest
from ..edge.artifact import ExitPoint
from ..models import starter
from .batches import Batch, encode_command
from .checkpoint import load_checkpoint, save_checkpoint
from .commands import generate
from .corpus import read_corpus
from .exit_files import write_exit
from .heldout import code_prompts, command_prompts, read_heldout
from .muon import Muon
from .precision import autocast
from .pretrain import MIXES, WORK, mixed_batches, prepare

LAYERS = 2
TOKENS = 250_000
RANK, SHORTLIST = 128, 1023
PEAK = 4e-3
_CODE_PROMPT, _NEW = 40, {"command": 72, "code": 64}
_LENGTHS = 6
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


@torch.no_grad()
def continued(edge: LlamaForCausalLM, prompts: Iterable[Sequence[int]], new: int, rows: int = 64) -> list[Batch]:
    """Batches of prompts of one length, each continued greedily by the edge; only its own words have weight.

    The commonest lengths alone are taken: each is one batch, and a short one costs as many steps as a full one.
    """
    by_length: dict[int, list[Sequence[int]]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt), []).append(prompt)
    batches = []
    commonest = sorted(by_length.items(), key=lambda found: -len(found[1]))[:_LENGTHS]
    for length, alike in commonest:
        given = torch.tensor(alike[:rows])
        told = cast(Any, edge).generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False
        )
        weights = torch.zeros(told.shape[0], told.shape[1] - 1)
        weights[:, length - 1 :] = 1.0
        ended = (told[:, length:] == edge.generation_config.eos_token_id).cumsum(-1)
        weights[:, length:][ended[:, :-1] > 0] = 0.0
        batches.append(Batch(told, weights))
    return batches


def own_text(edge: LlamaForCausalLM, tokenizer: Tokenizer, stream: np.ndarray) -> list[Batch]:
    """Training prompts that the edge continued: what it drafts when deployed is its own text."""
    commands = [encode_command(tokenizer, command) for command in islice(generate("train", 5), 600)]
    starts = range(0, 64 * 997, 997)
    code = [stream[start : start + _CODE_PROMPT].tolist() for start in starts if start + _CODE_PROMPT < len(stream)]
    told = continued(edge, (ids[:prompt] for ids, prompt in commands), _NEW["command"])
    return [*told, *(batch for half in (code[:32], code[32:]) for batch in continued(edge, half, _NEW["code"]))]


def heldout_text(edge: LlamaForCausalLM, tokenizer: Tokenizer) -> list[Batch]:
    """Held-out prompts, none of them in heldout.jsonl, that the edge continued."""
    kept = {prompt.prompt for prompt in read_heldout(starter() / "heldout.jsonl")}
    commands = [prompt.prompt for prompt in command_prompts(600, 13) if prompt.prompt not in kept]
    code = [prompt.prompt for prompt in code_prompts(read_corpus().heldout, 60, 13) if prompt.prompt not in kept]
    ids = [tokenizer.encode(text).ids[:_CODE_PROMPT] for text in code]
    told = continued(edge, (tokenizer.encode(text).ids for text in commands), _NEW["command"])
    return [*told, *continued(edge, ids, _NEW["code"])]


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
    step_of: Callable[[Batch, int], tuple[float, float]],
    triples: Callable[[int], Iterable[tuple[Batch, ...]]],
    tokens: int,
    checkpoint: Path,
) -> None:
    """Distil until `tokens` ids were seen; `triples` gives each step's batches from a step on."""
    matrices = [parameter for parameter in inner.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in inner.parameters() if parameter.ndim < 2]
    optimizers = [Muon(matrices, lr=PEAK), torch.optim.AdamW(vectors, lr=PEAK, weight_decay=0.0)]
    step, seen = load_checkpoint(checkpoint, inner, optimizers)
    batches = iter(triples(step))
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
            words = [f"{name} {kl:.3f} {same:.3f}" for name, (kl, same) in zip(_KINDS, report, strict=True)]
            described = " ".join([f"step {step} KL and same:", *words])
            progress.update(bar, completed=seen, description=described)
            if step % 20 == 0 or seen >= tokens:
                progress.console.print(described, f"tokens {seen}")
                save_checkpoint(checkpoint, inner, optimizers, step, seen)


_KINDS = ("commands", "code", "own")


def make_inner_exit(edge_dir: Path, work: Path, layers: int = LAYERS, tokens: int = TOKENS) -> list[ExitPoint]:
    """Train an exit after `layers` layers and write it into `edge_dir`; returns what it does on held-out text.

    Raises ModelDirError when the directory's tokenizer is not the one of `work`, or it has too few layers.
    """
    tokenizer, stream = prepare(work)
    if file_digest(edge_dir / "tokenizer.json") != file_digest(work / "tokenizer.json"):
        raise ModelDirError(f"{edge_dir} and {work} differ in their tokenizers; the text is in the latter's ids")
    edge = LlamaForCausalLM.from_pretrained(edge_dir, dtype=torch.float32).requires_grad_(False)
    if not 0 < layers < edge.config.num_hidden_layers:
        raise ModelDirError(f"{edge_dir} has {edge.config.num_hidden_layers} layers: no exit after layer {layers}")
    torch.manual_seed(0)
    own = own_text(edge, tokenizer, stream)
    first = [batch for pair in islice(mixed_batches(tokenizer, stream, MIXES[0][1], 3, 0), 12) for batch in pair]
    inner = InnerExit(edge, most_said([*own, *first], edge.config.vocab_size))
    weights = "".join(file_digest(path) for path in sorted(edge_dir.glob("model*.safetensors")))
    checkpoint = work / f"inner-{layers}-{weights[:12]}.pt"

    def triples(step: int) -> Iterable[tuple[Batch, ...]]:
        mixed = mixed_batches(tokenizer, stream, MIXES[0][1], 3, step)
        return ((*pair, batch) for pair, batch in zip(mixed, islice(cycle(own), step, None), strict=False))

    train(inner, lambda batch, parts: distil_step(edge, inner, layers, batch, parts), triples, tokens, checkpoint)
    curve = measure(edge, inner, layers, heldout_text(edge, tokenizer))
    write_exit(edge_dir, inner.tensors(), layers, curve)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an inner exit for an edge model.")
    parser.add_argument("--edge", type=Path, default=WORK / "edge_hf", help="the edge model; gains the exit")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the edge model, below the exit")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="budget in tokens, padding included")
    options = parser.parse_args()
    for point in make_inner_exit(options.edge, WORK, options.layers, options.tokens):
        print(f"from {point.min_probability:.2f}: {point.drafted:.3f} drafted, {point.acceptance:.3f} of them stand")


if __name__ == "__main__":
    main()

"""Train an edge model: the cloud's lower layers, frozen, and one exit block distilled from the cloud.

`python -P -m tiermesh.training.exits` goes on from the checkpoint of the same cloud in `.training/`, if there is one,
and then trains the edge's inner exit (inner_exit.py). Without more it is the starter's; `--cloud DIR --prompts FILE
--exit-layers N` makes an edge of any Llama directory, on what that model answers to the prompts of the file.
One pass of the cloud gives both the trunk's output and the target distributions, so a step costs little more than that.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from ..common.errors import ModelDirError, TiermeshError
from ..common.model_dir import digests
from .batches import Batch
from .checkpoint import load_checkpoint, save_checkpoint
from .inner_exit import LAYERS, make_inner_exit
from .muon import Muon
from .own_text import Text, continued, file_text, starter_text
from .precision import autocast
from .pretrain import WORK, save_model

TRUNK = 4
"""Layers shared with the cloud: 4 agree with the cloud on 0.81 of tokens where 2 reach 0.70 (a trial at this size)."""
PEAK = 2e-3
TEMPERATURES = (0.0, 0.8)
"""At which the cloud continues prompts: how the pair serves."""


def new_edge(cloud: LlamaForCausalLM, trunk: int = TRUNK) -> LlamaForCausalLM:
    """A model of `trunk` + 1 layers that shares the cloud's embeddings, head and lower layers.

    The exit block starts as the cloud's last layer, which already writes for the head.
    """
    edge = LlamaForCausalLM(LlamaConfig(**{**cloud.config.to_dict(), "num_hidden_layers": trunk + 1}))
    weights = cloud.state_dict()
    last, exit_layer = f"model.layers.{cloud.config.num_hidden_layers - 1}.", f"model.layers.{trunk}."
    for name in edge.state_dict():
        source = name.replace(exit_layer, last) if name.startswith(exit_layer) else name
        edge.state_dict()[name].copy_(weights[source])
    return edge


class Exit(torch.nn.Module):
    """The trainable part of an edge model (block and final norm) on top of the trunk's output."""

    def __init__(self, edge: LlamaForCausalLM) -> None:
        super().__init__()
        self.block, self.norm = edge.model.layers[-1], edge.model.norm
        self._fixed = (edge.model.rotary_emb, edge.lm_head.weight.detach())

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [rows, length, vocab] from the trunk's output [rows, length, hidden]."""
        rotary, head = self._fixed
        positions = rotary(hidden, torch.arange(hidden.size(1))[None])
        return functional.linear(self.norm(self.block(hidden, position_embeddings=positions)), head)


def divergence(target: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """KL(cloud ‖ edge) in nats per weighted token, and the share of equal first choices where the weight is 1."""
    logits, target = logits[:, :-1], target[:, :-1]
    losses = functional.kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True).sum(
        -1
    )
    counted = batch.weights == 1
    agreement = (logits.argmax(-1) == target.argmax(-1))[counted].float().mean().item()
    return (losses * batch.weights).sum() / batch.weights.sum(), agreement


def train(
    cloud: LlamaForCausalLM,
    exit_head: Exit,
    trunk: int,
    text: Text,
    own: Sequence[Batch],
    tokens: int,
    checkpoint: Path,
) -> None:
    """Distil until `tokens` ids were seen: of each step one batch is what the cloud itself said."""
    matrices = [parameter for parameter in exit_head.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in exit_head.parameters() if parameter.ndim < 2]
    optimizers = [Muon(matrices, lr=PEAK), torch.optim.AdamW(norms, lr=PEAK, weight_decay=0.0)]
    step, seen = load_checkpoint(checkpoint, exit_head, optimizers)
    groups = zip(text.given(step), islice(cycle(own), step, None), strict=False)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task("exit", total=tokens, completed=seen)
        while seen < tokens:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = PEAK * max(0.02, 1.0 - seen / tokens)
            given, said = next(groups)
            batches = (*given, said)
            report = [distil_step(cloud, exit_head, trunk, batch, len(batches)) for batch in batches]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step, seen = step + 1, seen + sum(batch.ids.numel() for batch in batches)
            words = [
                f"{kind} {kl:.3f} {same:.3f}" for kind, (kl, same) in zip((*text.kinds, "own"), report, strict=True)
            ]
            described = " ".join([f"step {step} KL and same:", *words])
            progress.update(bar, completed=seen, description=described)
            if step % 20 == 0 or seen >= tokens:
                progress.console.print(described, f"tokens {seen}")
                save_checkpoint(checkpoint, exit_head, optimizers, step, seen)


def distil_step(cloud: LlamaForCausalLM, exit_head: Exit, trunk: int, batch: Batch, parts: int) -> tuple[float, float]:
    """Add one batch's gradients, of `parts`; the divergence and the agreement."""
    with torch.no_grad(), autocast():
        seen = cloud(batch.ids, use_cache=False, output_hidden_states=True)
    with autocast():
        logits = exit_head(seen.hidden_states[trunk].float())
    loss, agreement = divergence(seen.logits.float(), logits.float(), batch)
    (loss / parts).backward()
    return loss.item(), agreement


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil an edge model from a cloud model's lower layers.")
    parser.add_argument("--tokens", type=int, default=700_000, help="budget in tokens, padding included")
    parser.add_argument(
        "--exit-layers", type=_layers, default=(LAYERS, TRUNK), metavar="INNER,LAST",
        help="layers below the inner exit and below the exit block; one number: no inner exit",
    )  # fmt: skip
    parser.add_argument("--cloud", type=Path, default=WORK / "cloud")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt per line, for a model of other text")
    parser.add_argument("--out", type=Path, default=WORK / "edge_hf")
    options = parser.parse_args()
    try:
        make_edge(options.cloud, options.out, options.exit_layers, options.tokens, options.prompts)
    except TiermeshError as error:
        sys.exit(f"exits: {error.message}")


def make_edge(cloud_dir: Path, out: Path, exit_layers: Sequence[int], tokens: int, prompts: Path | None) -> None:
    """Write the edge model, with its inner exit if one is wanted, into `out`. Raises ModelDirError for odd input."""
    torch.manual_seed(0)
    *inner, trunk = exit_layers
    cloud = LlamaForCausalLM.from_pretrained(cloud_dir, dtype=torch.float32).requires_grad_(False)
    if trunk >= cloud.config.num_hidden_layers:
        raise ModelDirError(f"{cloud_dir} has {cloud.config.num_hidden_layers} layers: no exit block after {trunk}")
    tokenizer_file = cloud_dir / "tokenizer.json"
    WORK.mkdir(exist_ok=True)
    if prompts is None:
        text = starter_text(WORK, tokenizer_file)
    else:
        text = file_text(prompts, tokenizer_file, cloud.config.max_position_embeddings)
    own = [batch for asked in text.asked for heat in TEMPERATURES for batch in continued(cloud, asked, heat)]
    torch.manual_seed(0)
    order = torch.randperm(len(own)).tolist()
    edge = new_edge(cloud, trunk)
    checkpoint = WORK / f"exit-{trunk}-{digests(cloud_dir).model[:12]}.pt"
    train(cloud, Exit(edge), trunk, text, [own[place] for place in order], tokens, checkpoint)
    save_model(edge, cloud_dir, out)
    for stale in out.glob("inner_exit.*"):
        stale.unlink()
    for layers in inner:
        make_inner_exit(out, text, WORK, layers)


def _layers(text: str) -> tuple[int, ...]:
    layers = tuple(int(part) for part in text.split(","))
    if len(layers) > 2 or list(layers) != sorted(set(layers)) or layers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one or two ascending numbers of layers")
    return layers


if __name__ == "__main__":
    main()

"""Train the starter's edge model: the cloud's lower layers, frozen, and one exit block distilled from the cloud.

`python -P -m tiermesh.training.exits` goes on from the checkpoint of the same cloud in `.training/`, if there is one.
One pass of the cloud gives both the trunk's output and the target distributions, so a step costs little more than that.
"""

import argparse
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from ..common.model_dir import digests
from .batches import Batch
from .checkpoint import load_checkpoint, save_checkpoint
from .muon import Muon
from .pretrain import MIXES, WORK, cloud_config, mixed_batches, prepare, save_model

TRUNK = 4
"""Layers shared with the cloud: 4 agree with the cloud on 0.81 of tokens where 2 reach 0.70 (a trial at this size)."""
PEAK = 2e-3


def new_edge(cloud: LlamaForCausalLM, trunk: int = TRUNK) -> LlamaForCausalLM:
    """A model of `trunk` + 1 layers that shares the cloud's embeddings, head and lower layers.

    The exit block starts as the cloud's last layer, which already writes for the head.
    """
    edge = LlamaForCausalLM(cloud_config(trunk + 1))
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


def train(cloud: LlamaForCausalLM, exit_head: Exit, work: Path, tokens: int, checkpoint: Path) -> None:
    """Distil until `tokens` ids were seen, drawn anew: most of them the cloud has not been trained on."""
    tokenizer, stream = prepare(work)
    matrices = [parameter for parameter in exit_head.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in exit_head.parameters() if parameter.ndim < 2]
    optimizers = [Muon(matrices, lr=PEAK), torch.optim.AdamW(norms, lr=PEAK, weight_decay=0.0)]
    step, seen = load_checkpoint(checkpoint, exit_head, optimizers)
    pairs = mixed_batches(tokenizer, stream, MIXES[0][1], 2, step)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task("exit", total=tokens, completed=seen)
        while seen < tokens:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = PEAK * max(0.02, 1.0 - seen / tokens)
            batches = next(pairs)
            report = [distil_step(cloud, exit_head, batch) for batch in batches]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step, seen = step + 1, seen + sum(batch.ids.numel() for batch in batches)
            words = [f"KL {loss:.3f} same {same:.3f}" for loss, same in report]
            described = f"step {step} commands {words[0]} code {words[1]}"
            progress.update(bar, completed=seen, description=described)
            if step % 20 == 0:
                progress.console.print(described, f"tokens {seen}")
                save_checkpoint(checkpoint, exit_head, optimizers, step, seen)


def distil_step(cloud: LlamaForCausalLM, exit_head: Exit, batch: Batch) -> tuple[float, float]:
    """Add one batch's gradients; the divergence and the agreement."""
    with torch.no_grad():
        seen = cloud(batch.ids, use_cache=False, output_hidden_states=True)
    loss, agreement = divergence(seen.logits, exit_head(seen.hidden_states[TRUNK]), batch)
    (loss / 2).backward()
    return loss.item(), agreement


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil the starter's edge model from its cloud model.")
    parser.add_argument("--tokens", type=int, default=700_000, help="budget in tokens, padding included")
    parser.add_argument("--cloud", type=Path, default=WORK / "cloud")
    parser.add_argument("--out", type=Path, default=WORK / "edge_hf")
    options = parser.parse_args()
    torch.manual_seed(0)
    cloud = LlamaForCausalLM.from_pretrained(options.cloud, dtype=torch.float32)
    edge = new_edge(cloud)
    checkpoint = WORK / f"exit-{digests(options.cloud).model[:12]}.pt"
    train(cloud, Exit(edge), WORK, options.tokens, checkpoint)
    save_model(edge, WORK, options.out)


if __name__ == "__main__":
    main()

"""Calibrate the starter pair in this process: the edge artifact against the cloud model, without a mesh.

`python -P -m tiermesh.training.calibrate` writes calibration.json into models/starter/edge. A mesh's own pair is
calibrated by `tiermesh calibrate`, which shares everything but the labeller.
"""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor
from transformers import LlamaForCausalLM

from ..cloud.sampler import Row, choose
from ..common.model_dir import digests
from ..common.types import Sampling
from ..edge.calibration import CLASSES, Calibration
from ..edge.calibration_file import write_calibration
from ..edge.labelling import Units
from ..edge.measuring import Decoder, Plan, calibrate
from ..edge.report import print_report
from ..models import starter
from .corpus import read_corpus
from .heldout import Prompt, code_prompts, command_prompts, read_heldout

PLAN = Plan(tuple(each for each in CLASSES if each.name in ("greedy", "T<=0.9")), epsilon=0.05, max_tokens=96)
"""What is measured for the starter; others are measured by `tiermesh calibrate --temperature`."""
_COMMANDS, _CODE = 1750, 250
_SEED = 71


class TorchLabeller:
    """A `Labeller` over the cloud's weights in this process."""

    def __init__(self, cloud: LlamaForCausalLM) -> None:
        self._cloud = cloud

    async def choices(self, ids: Sequence[int], start: int, sampling: Sampling) -> Sequence[int]:
        """See `Labeller`; the event loop waits meanwhile, the edge's thread does not."""
        return await asyncio.to_thread(self._choices, ids, start, sampling)

    @torch.no_grad()
    def _choices(self, ids: Sequence[int], start: int, sampling: Sampling) -> list[int]:
        logits: Tensor = self._cloud(torch.tensor([list(ids)]), use_cache=False).logits[0, start - 1 : -1]
        rows = [Row(sampling, index) for index in range(len(logits))]
        return [choice.token for choice in choose(logits.float(), rows)]


def starter_prompts(heldout: Path) -> list[Prompt]:
    """Held-out prompts that are not in heldout.jsonl: commands of another seed, and code of others."""
    kept = {prompt.prompt for prompt in read_heldout(heldout)}
    code = code_prompts(read_corpus().heldout, _CODE, _SEED)
    return starter_commands(heldout) + [prompt for prompt in code if prompt.prompt not in kept]


def starter_commands(heldout: Path) -> list[Prompt]:
    """The commands of `starter_prompts`, without reading the corpus."""
    kept = {prompt.prompt for prompt in read_heldout(heldout)}
    drawn = command_prompts(_COMMANDS + len(kept), _SEED)
    return [prompt for prompt in drawn if prompt.prompt not in kept][:_COMMANDS]


def calibrate_pair(
    edge: Path, cloud: Path, prompts: Sequence[str], plan: Plan = PLAN
) -> tuple[Calibration, dict[str, list[Units]]]:
    """Label, fit and test; nothing is written."""
    labeller = TorchLabeller(LlamaForCausalLM.from_pretrained(cloud, dtype=torch.float32))
    decoder = Decoder(edge)
    try:
        with Progress() as progress:
            bar = progress.add_task("labels", total=len(plan.classes) * len(set(prompts)))
            return asyncio.run(
                calibrate(decoder, labeller, digests(cloud).model, prompts, plan, lambda: progress.advance(bar))
            )
    finally:
        decoder.close()


def calibrate_starter(directory: Path) -> None:
    """Write calibration.json of a starter directory, and print what it says."""
    torch.set_num_threads(1)  # several answers are labelled side by side, each in a thread
    prompts = [prompt.prompt for prompt in starter_prompts(directory / "heldout.jsonl")]
    calibration, labelled = calibrate_pair(directory / "edge", directory / "cloud", prompts)
    write_calibration(directory / "edge", calibration)
    print_report(calibration, labelled)


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibrate the starter pair in this process.")
    parser.add_argument("--model", type=Path, default=starter())
    options = parser.parse_args()
    calibrate_starter(options.model)


if __name__ == "__main__":
    main()

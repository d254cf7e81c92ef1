"""Put the starter pair together: export the edge, choose its threshold on held-out prompts, replace models/starter.

`python -P -m tiermesh.training.assemble` reads `.training/cloud` and `.training/edge_hf`.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from ..models import starter
from .corpus import read_corpus
from .export_edge import export_edge
from .greedy import EdgeReader
from .heldout import Prompt, code_prompts, command_prompts, read_heldout, write_heldout
from .pretrain import WORK
from .threshold import choose_threshold, judge

WRONG_SHARE = 0.05
"""Share of units shown alone that may differ from the cloud's: the default bound of the demo tenant."""


def calibration_prompts(heldout: Path) -> list[Prompt]:
    """Held-out prompts that are not in heldout.jsonl: 300 commands and 100 pieces of code."""
    kept = {prompt.prompt for prompt in read_heldout(heldout)}
    drawn = command_prompts(300, 11) + code_prompts(read_corpus().heldout, 160, 11)
    return [prompt for prompt in drawn if prompt.prompt not in kept][:400]


def assemble(work: Path, out: Path, bits: int) -> None:
    """Build everything in a folder beside `out`, then swap; the card is kept."""
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(work / "cloud", new / "cloud")
    write_heldout(new / "heldout.jsonl")
    shutil.copyfile(work / "manifest.json", new / "manifest.json")
    export_edge(work / "edge_hf", new / "edge", bits)
    cloud = LlamaForCausalLM.from_pretrained(new / "cloud", dtype=torch.float32)
    units = judge(EdgeReader(new / "edge"), cloud, calibration_prompts(new / "heldout.jsonl"))
    export_edge(work / "edge_hf", new / "edge", bits, min_unit_probability=choose_threshold(units, WRONG_SHARE))
    if (out / "README.md").exists():
        shutil.copyfile(out / "README.md", new / "README.md")
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Assemble the starter pair from what was trained.")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8)
    parser.add_argument("--out", type=Path, default=starter())
    options = parser.parse_args()
    assemble(WORK, options.out, options.bits)


if __name__ == "__main__":
    main()

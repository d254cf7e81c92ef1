"""Put the starter pair together: export the edge, calibrate it on held-out prompts, replace models/starter.

`python -P -m tiermesh.training.assemble` reads `.training/cloud` and `.training/edge_hf`.
"""

import argparse
import shutil
from pathlib import Path

from ..models import starter
from .calibrate import calibrate_starter
from .export_edge import export_edge
from .heldout import write_heldout
from .pretrain import WORK


def assemble(work: Path, out: Path, bits: int) -> None:
    """Build everything in a folder beside `out`, then swap; the card is kept."""
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(work / "cloud", new / "cloud")
    write_heldout(new / "heldout.jsonl")
    shutil.copyfile(work / "manifest.json", new / "manifest.json")
    export_edge(work / "edge_hf", new / "edge", bits)
    calibrate_starter(new)
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

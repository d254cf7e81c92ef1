"""The engine against what was asked of it: speed beside transformers, waiting, prefixes, tiers, drafts, overhead."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..models import starter
from .engine_claims import Claim, Setting
from .engine_drafts import drafts
from .engine_speed import mixed, overhead, single
from .engine_waits import long_prompt, prefix, tiers
from .kit import MIN_PAIRS
from .results import RESULTS, plot_bars, require_green, write_result

SECTIONS: dict[str, Callable[[Setting], list[Claim]]] = {
    section.__name__: section for section in (single, mixed, long_prompt, prefix, tiers, drafts, overhead)
}


def main(arguments: Sequence[str]) -> None:
    """Runs the sections asked for, prints each figure beside its aim, and writes them."""
    parser = argparse.ArgumentParser(prog="tiermesh bench engine", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--model", type=Path, default=starter() / "cloud", metavar="DIR")
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="all of it short, to see that it runs; proves nothing")
    parser.add_argument("--force", action="store_true", help="measure a tree that was not tested")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    torch.set_num_threads(given.threads)
    setting = Setting(given.model, given.threads, given.pairs, given.quick)
    settings = {"threads": given.threads, "pairs": given.pairs, "quick": given.quick}
    claims = dict[str, list[Claim]]()
    for name in given.only:
        claims[name] = SECTIONS[name](setting)
        print(*claims[name], sep="\n", flush=True)
        # After each: a whole run takes a quarter of an hour, and what was measured stays measured.
        figures = {name: [claim.data() for claim in found] for name, found in claims.items()}
        path = write_result("engine", settings | figures, green=green, folder=given.out)
    margins = {claim.what: claim.margin for found in claims.values() for claim in found if claim.aim}
    plot_bars("engine", "How many times better than asked", "1 is just met", margins, given.out)
    print(path)

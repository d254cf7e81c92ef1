"""Decoding with drafts from the inner exit against decoding without; where drafts begin to pay, by size.

Without means the same two segments run for every token, and with `--whole` also the same weights as one graph, which
is what a node would run if there were no exit: the cut and the exit's own work are part of the price.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from tiermesh.common.errors import TiermeshError
from tiermesh.common.types import Sampling

from ..edge.artifact import ExitPoint, read_artifact
from ..edge.decoding import drafted_picks, plain_picks
from ..edge.exits import Costs, ExitAccount
from ..edge.model import EdgeModel
from ..edge.sampling import Picker
from ..edge.segment_costs import measure_costs
from ..edge.sequence import SequenceState
from ..edge.split import MAX_DRAFTS, SplitState
from ..edge.units import UNIT_TOKENS
from ..models import starter
from .kit import paired_ratio
from .prompts import heldout
from .results import plot_lines, require_green, write_result

SIZES = ((5, 384), (8, 768), (12, 1024))
"""Layers and width of the random models of the break-even curve; the first has the starter's shape."""
_SHARES = tuple(round(0.05 * step, 2) for step in range(21))
_ANSWER_TOKENS = 64


def main(arguments: Sequence[str]) -> None:
    """Measures the artifact's own text, then the costs of random models; prints and writes both."""
    parser = argparse.ArgumentParser(prog="tiermesh bench exits", description=__doc__)
    parser.add_argument("--model", type=Path, default=starter() / "edge", metavar="DIR")
    parser.add_argument("--whole", type=Path, metavar="DIR", help="the same weights exported without an inner exit")
    parser.add_argument("--prompts", type=int, default=40, help="held-out commands, and half as many pieces of code")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    figures = _measure_text(given.model, given.whole, given.prompts, given.pairs) | {"synthetic": _measure_sizes()}
    path = write_result("exits", figures, green=green)
    curves = {
        f"{size['parameters'] / 1e6:.0f} M parameters": (_SHARES, size["cost_by_share"])
        for size in figures["synthetic"]
    }
    names = ("share of tokens that are drafted and stand (assumed, not measured)", "time over that of one whole graph")
    plot_lines("exits", "Where drafts from the inner exit begin to pay", names, curves)
    print(json.dumps(figures) if given.json else _table(figures, path))


def _measure_text(directory: Path, whole: Path | None, prompts: int, pairs: int) -> dict[str, Any]:
    """Milliseconds per token on held-out prompts, in turn, and how many texts are the same."""
    from tokenizers import Tokenizer

    artifact = read_artifact(directory)
    if artifact.inner_exit is None:
        raise TiermeshError(f"{directory} has no inner exit: train one with tiermesh.training.inner_exit and export")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    state = EdgeModel.load(artifact).sequence()
    assert isinstance(state, SplitState)
    costs = measure_costs(state)
    account = ExitAccount(costs, costs.best_point(artifact.inner_exit.curve))
    texts = [*heldout("command")[:prompts], *heldout("code")[: prompts // 2]]
    asked = [tokenizer.encode(text).ids for text in texts]
    ends = frozenset(artifact.eos_ids)
    without, with_drafts = _decode(state, asked, ends, None), _decode(state, asked, ends, account)
    same = sum(one == other for one, other in zip(without[1], with_drafts[1], strict=True))
    drafted, accepted = account.take_counts()
    ratio = paired_ratio(
        lambda: _decode(state, asked, ends, account)[0], lambda: _decode(state, asked, ends, None)[0], pairs=pairs
    )
    tokens = sum(map(len, without[1]))
    against_whole = None
    if whole is not None:
        graph = EdgeModel.load(read_artifact(whole)).sequence()
        against_whole = paired_ratio(
            lambda: _decode(state, asked, ends, account)[0], lambda: _decode(graph, asked, ends, None)[0], pairs=pairs
        ).facts()
    return {
        "ms_per_token_with_over_without": ratio.facts(),
        "ms_per_token_with_over_whole_graph": against_whole,
        "same_texts": [same, len(asked)],
        "tokens": tokens,
        "drafted_share": drafted / tokens,
        "acceptance": accepted / drafted if drafted else None,
        "on_at_the_end": account.on,
        "costs_s": asdict(costs),
    }


def _decode(
    state: SequenceState, prompts: Sequence[list[int]], ends: frozenset[int], account: ExitAccount | None
) -> tuple[float, list[list[int]]]:
    """Milliseconds per token without prefill, and the greedy answers, in units as the node decodes them."""
    spent_s, answers = 0.0, []
    for prompt in prompts:
        state.reset()
        state.catch_up(prompt)
        picker, answer = Picker(Sampling(), len(prompt), False), list[int]()
        began = time.perf_counter()
        while len(answer) < _ANSWER_TOKENS and (not answer or answer[-1] not in ends):
            unit: list[int] = []

            def goes_on(ids: Sequence[int]) -> bool:
                return len(ids) < UNIT_TOKENS and ids[-1] not in ends

            new = answer[-1:]
            if account is not None and isinstance(state, SplitState):
                picks = drafted_picks(state, picker, account, new, goes_on)
            else:
                for token in new:
                    state.step(token)
                picks = plain_picks(state, picker)
            for pick in picks:
                unit.append(pick.id)
                if not goes_on(unit):
                    break
            answer += unit
        spent_s += time.perf_counter() - began
        answers.append(answer)
    return 1000 * spent_s / sum(map(len, answers)), answers


def _measure_sizes() -> list[dict[str, Any]]:
    """Costs of random models of several sizes, and by them the cost per token at assumed shares of right drafts."""
    from ..training.export_edge import export_edge
    from ..training.random_model import write_random_exit, write_random_model

    sizes = []
    for layers, width in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            hf = write_random_model(
                Path(folder, "hf"), layers=layers, hidden=width, heads=width // 64, kv_heads=2, vocab=4096
            )
            export_edge(hf, Path(folder, "whole"))
            whole = EdgeModel.load(read_artifact(Path(folder, "whole"))).sequence()
            write_random_exit(hf, max(1, 2 * layers // 5), [ExitPoint(0.0, 1.0, 1.0)], rank=128, shortlist=1023)
            export_edge(hf, Path(folder, "edge"))
            artifact = read_artifact(Path(folder, "edge"))
            state = EdgeModel.load(artifact).sequence()
            assert isinstance(state, SplitState)
            # In turn, so that a busy while slows both: one after the other, two segments once beat their own whole.
            rounds = [(measure_costs(state), _step_s(whole)) for _ in range(5)]
            fastest = (min(times) for times in zip(*(astuple(costs) for costs, _ in rounds), strict=True))
            costs, whole_s = Costs(*fastest), min(step_s for _, step_s in rounds)
        shapes = artifact.architecture
        kv_width = shapes.kv_heads * shapes.head_dim
        parameters = 4096 * width + layers * (2 * width * width + 2 * width * kv_width + 6 * width * width)
        sizes.append(
            {
                "layers": layers,
                "width": width,
                "parameters": parameters,
                "costs_s": asdict(costs),
                "whole_step_s": whole_s,
                "cost_by_share": [_best_s(costs, share) / whole_s for share in _SHARES],
                "break_even_share": next((s for s in _SHARES if _best_s(costs, s) < whole_s), None),
            }
        )
    return sizes


def _step_s(state: SequenceState) -> float:
    """Of the whole graph: the fastest of some, as `measure_costs` takes the segments' times."""

    def step() -> float:
        state.catch_up([0])
        began = time.perf_counter()
        state.step(0)
        return time.perf_counter() - began

    return min(step() for _ in range(15))


def _best_s(costs: Costs, share: float) -> float:
    """Seconds per token with the best number of drafts, if `share` of the tokens is drafted and all drafts stand."""
    return min(costs.per_token(share, 1.0, rows) for rows in range(2, MAX_DRAFTS + 2))


def _table(figures: dict[str, Any], path: Path) -> str:
    ratio, same = figures["ms_per_token_with_over_without"], figures["same_texts"]
    lines = [
        f"ms per token, with over without drafts: {_ratio(ratio)}",
        f"with drafts over one whole graph: {_ratio(figures['ms_per_token_with_over_whole_graph'])}",
        f"same texts: {same[0]} of {same[1]}; drafted: {figures['drafted_share']:.2f} of tokens, "
        f"accepted: {figures['acceptance'] or 0:.3f} of drafts; on: {figures['on_at_the_end']}",
        "random weights, all drafts assumed to stand:",
    ]
    lines += [
        f"  {size['parameters'] / 1e6:6.1f} M parameters: pays from a drafted share of {size['break_even_share']}, "
        f"at 0.8 costs {size['cost_by_share'][_SHARES.index(0.8)]:.2f} of plain decoding"
        for size in figures["synthetic"]
    ]
    return "\n".join([*lines, f"written to {path}"])


def _ratio(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "not measured (--whole)"
    low, high = facts["spread"]
    return f"{facts['ratio']:.3f} ({low:.3f} to {high:.3f}, {facts['pairs']} pairs)"

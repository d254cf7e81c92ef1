"""What the edge carries over the whole mesh: answers without a visit, cloud passes per token, same texts.

Commands are asked in `bounded` at δ = 0.02 and judged by their truth, beside the cloud alone. The mix of commands and
code is asked in `bounded` at δ = 0.05 and in `exact`, whose texts must be the cloud's. Passes and positions are the
worker's own counts, one request at a time, so that nobody shares a pass.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import Answer, AsyncClient
from ..common.config import DEMO_KEY
from ..common.errors import QuotaExceeded
from ..common.types import Origin
from ..models import starter
from ..status import read_all
from ..supervise import ANY_PORTS, Mesh
from ..training.heldout import Prompt, command_prompts, read_heldout
from .results import plot_bars, require_green, write_result

_SEED = 90210
"""Of the commands: neither the calibration's nor those of heldout.jsonl."""
_LENGTHS = {"command": 96, "code": 48}


@dataclass(frozen=True, slots=True)
class Run:
    """All answers of one way of asking, and what the worker did for them."""

    answers: list[Answer]
    passes: float
    """Forward passes of the worker."""
    positions: float
    """Tokens that those passes read."""


def main(arguments: Sequence[str]) -> None:
    """Starts a mesh, asks, prints and writes the figures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench load", description=__doc__)
    parser.add_argument("--commands", type=int, default=600)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of the mix, every N-th prompt alone")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    mix = read_heldout(starter() / "heldout.jsonl")[:: given.every]
    figures = asyncio.run(_measure(command_prompts(given.commands, _SEED), mix))
    path = write_result("load", figures, green=green)
    plot_bars(
        "load",
        "Cloud passes per token",
        "forward passes of the worker ÷ tokens of the answers",
        {name: row["passes_per_token"] for name, row in figures["mix"].items()},
    )
    print(json.dumps(figures) if given.json else f"{json.dumps(figures, indent=1)}\nwritten to {path}")


async def _measure(commands: Sequence[Prompt], mix: Sequence[Prompt]) -> dict[str, Any]:
    async with Mesh(ports=ANY_PORTS) as mesh:
        metrics = mesh.metrics["cloud"]
        async with (
            AsyncClient(mesh.addresses["edge"], api_key=DEMO_KEY) as edge,
            AsyncClient(mesh.addresses["router"], api_key=DEMO_KEY) as router,
        ):
            alone = await _ask(router, metrics, commands, quality="exact")
            bounded = await _ask(edge, metrics, commands, quality="bounded", delta=0.02)
            ways = {
                "cloud alone": await _ask(router, metrics, mix, quality="exact"),
                "exact": await _ask(edge, metrics, mix, quality="exact"),
                "bounded, δ = 0.05": await _ask(edge, metrics, mix, quality="bounded", delta=0.05),
            }
    truth = [answer.token_ids for answer in ways["cloud alone"].answers]
    return {
        "commands, δ = 0.02": {
            "prompts": len(commands),
            "unvisited": _share(not _visited(answer) for answer in bounded.answers),
            "exact_match": _right(bounded.answers, commands),
            "exact_match_of_the_cloud": _right(alone.answers, commands),
            "same_as_the_cloud": _share(
                mine.token_ids == theirs.token_ids for mine, theirs in zip(bounded.answers, alone.answers, strict=True)
            ),
            "passes_per_token": bounded.passes / _tokens(bounded),
        },
        "mix": {name: _way(run, truth) for name, run in ways.items()},
    }


async def _ask(client: AsyncClient, metrics: str, prompts: Sequence[Prompt], **options: Any) -> Run:
    before = _work_done(metrics)
    answers = [await _patiently(client, prompt, options) for prompt in prompts]
    passes, positions = (after - begun for after, begun in zip(_work_done(metrics), before, strict=True))
    return Run(answers, passes, positions)


async def _patiently(client: AsyncClient, prompt: Prompt, options: Mapping[str, Any]) -> Answer:
    """The answer, after a pause where the demo tenant's limit of requests per minute is used up."""
    while True:
        try:
            return await client.generate(prompt.prompt, max_tokens=_LENGTHS[prompt.kind], cache="bypass", **options)
        except QuotaExceeded as spent:
            await asyncio.sleep(spent.retry_after_s or 1.0)


def _work_done(metrics: str) -> tuple[float, float]:
    (status,) = read_all([metrics])
    found = {sample.name: sample.value for sample in status.samples}
    return found["tiermesh_cloud_steps_total"], found["tiermesh_cloud_tokens_total"]


def _way(run: Run, truth: Sequence[tuple[int, ...]]) -> dict[str, float]:
    return {
        "answers": len(run.answers),
        "tokens": _tokens(run),
        "passes_per_token": run.passes / _tokens(run),
        "positions_per_token": run.positions / _tokens(run),
        "unvisited": _share(not _visited(answer) for answer in run.answers),
        "handed_over": _share(answer.usage.handed_over for answer in run.answers),
        "same_as_the_cloud": _share(a.token_ids == ids for a, ids in zip(run.answers, truth, strict=True)),
    }


def _visited(answer: Answer) -> bool:
    return bool(answer.usage.asks) or any(span.origin is Origin.CLOUD for span in answer.spans)


def _tokens(run: Run) -> int:
    return sum(len(answer.token_ids) for answer in run.answers)


def _right(answers: Sequence[Answer], prompts: Sequence[Prompt]) -> float:
    return _share(answer.text == prompt.truth for answer, prompt in zip(answers, prompts, strict=True))


def _share(outcomes: Any) -> float:
    told = [bool(outcome) for outcome in outcomes]
    return sum(told) / len(told)

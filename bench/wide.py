"""Over an emulated wide area: `exact`, `bounded` and cloud only at round trips of 1 to 100 ms, with and without loss.

The link stands between edge node and router; who asks the cloud alone reaches the router through one of the same kind,
as a client far away would. Worker, router and edge are processes; every condition has a new edge node, which knows no
pace and has an empty ledger. After some warm-ups each prompt is asked in the three ways, one after the other, the first
of them changing from prompt to prompt; `wide_figures.py` says what is made of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from .. import Answer, AsyncClient
from ..common.config import DEMO_KEY
from ..common.errors import QuotaExceeded, TiermeshError, Unauthenticated, Unavailable
from ..models import starter
from ..status import read_all
from ..training.heldout import Prompt, read_heldout
from .processes import started
from .results import plot_lines, require_green, write_result
from .wide_area import WideAreaLink, precise_loop
from .wide_area_path import Conditions
from .wide_figures import KINDS, Sample, summary, table

_WAYS: dict[str, dict[str, Any]] = {
    "cloud only": {"quality": "exact"},
    "exact": {"quality": "exact"},
    "bounded": {"quality": "bounded", "delta": 0.05},
}
_LENGTHS = {"command": 96, "code": 48}
_PAUSE_S = 0.15
"""And two round trips, between answers: the edge audits the one before in a quiet moment, and that takes so long."""

_CONNECT_S = 20.0


def main(arguments: Sequence[str]) -> None:
    """Measures each round trip and loss; writes wide.json and a picture per kind of prompt."""
    parser = argparse.ArgumentParser(prog="tiermesh bench wide", description=__doc__)
    parser.add_argument("--rtt-ms", type=float, nargs="+", default=[1.0, 5.0, 20.0, 50.0, 100.0])
    parser.add_argument("--loss", type=float, nargs="+", default=[0.0, 0.01])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", type=int, default=8, help="per round")
    parser.add_argument("--code", type=int, default=8, help="pieces of code, per round")
    parser.add_argument("--warmups", type=int, default=12, help="prompts before the first round, of both kinds in turn")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    conditions = [Conditions(rtt / 1000, loss) for loss in given.loss for rtt in given.rtt_ms]
    prompts = read_heldout(starter() / "heldout.jsonl")
    warmups, rounds = plan(prompts, given.warmups // 2, given.rounds, {"command": given.commands, "code": given.code})
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        rows = runner.run(_measure(conditions, warmups, rounds))
    figures = {"warm_ups": len(warmups), "prompts_per_round": len(rounds[0]), "conditions": rows}
    path = write_result("wide", figures, green=green)
    for kind in KINDS:
        _plot(kind, rows)
    print(json.dumps(figures) if given.json else f"{table(rows)}\nwritten to {path}")


def plan(
    prompts: Sequence[Prompt], warmups: int, rounds: int, per_round: Mapping[str, int]
) -> tuple[list[Prompt], list[list[Prompt]]]:
    """Warm-ups (so many of each kind, in turn), and the prompts of each round, its kinds spread evenly; none twice.

    Raises TiermeshError when there are too few prompts.
    """
    of_kind = {kind: [prompt for prompt in prompts if prompt.kind == kind] for kind in per_round}
    if any(len(of_kind[kind]) < warmups + rounds * count for kind, count in per_round.items()):
        raise TiermeshError("there are not so many held-out prompts; ask for fewer rounds, or fewer prompts per round")
    first = [of_kind[kind][number] for number in range(warmups) for kind in per_round]
    planned = []
    for number in range(rounds):
        parts = [of_kind[kind][warmups + number * count :][:count] for kind, count in per_round.items()]
        placed = [((i + 0.5) / len(part), prompt) for part in parts for i, prompt in enumerate(part)]
        planned.append([prompt for _, prompt in sorted(placed, key=lambda pair: pair[0])])
    return first, planned


async def _measure(
    conditions: Sequence[Conditions], warmups: Sequence[Prompt], rounds: Sequence[Sequence[Prompt]]
) -> list[dict[str, Any]]:
    rows = []
    async with (
        started("cloud", {}) as worker,
        started("router", {"WORKERS": [worker.addresses["listening"]]}) as router,
    ):
        for number, condition in enumerate(conditions):
            async with _clients(router.addresses["listening"], condition, number) as (clients, links):
                samples = await _ask_all(clients, worker.addresses["metrics"], condition, warmups, rounds)
                lost = sum(link.lost for link in links)
            row = {"rtt_s": condition.rtt_s, "loss": condition.loss, "segments_lost": lost}
            rows.append(row | summary(samples) | {"samples": [asdict(sample) for sample in samples]})
            print(table(rows[-1:]), flush=True)
    return rows


@asynccontextmanager
async def _clients(
    router: str, condition: Conditions, seed: int
) -> AsyncIterator[tuple[dict[str, AsyncClient], tuple[WideAreaLink, WideAreaLink]]]:
    """A client per way; the edge node behind two of them is linked to the router when this yields."""
    async with (
        WideAreaLink(router, condition, 2 * seed) as near,
        WideAreaLink(router, condition, 2 * seed + 1) as far,
        started("edge", {"UPSTREAM": near.address}) as edge,
        AsyncClient(far.address, api_key=DEMO_KEY) as remote,
        AsyncClient(edge.addresses["listening"], api_key=DEMO_KEY) as local,
    ):
        await _linked(local)
        yield {"cloud only": remote, "exact": local, "bounded": local}, (near, far)


async def _linked(edge: AsyncClient) -> None:
    """Returns when the edge node has the router's policy, and with it an open stream."""
    async with asyncio.timeout(_CONNECT_S):
        while True:
            try:
                await edge.generate("a", max_tokens=1, quality="exact", cache="bypass")
                return
            except (Unauthenticated, Unavailable):
                await asyncio.sleep(0.1)


async def _ask_all(
    clients: Mapping[str, AsyncClient],
    metrics: str,
    condition: Conditions,
    warmups: Sequence[Prompt],
    rounds: Sequence[Sequence[Prompt]],
) -> list[Sample]:
    """One answer at a time; a pass that the worker makes in the pause after it counts as its own."""
    samples: list[Sample] = []
    names, asked = list(_WAYS), 0
    for number, prompts in enumerate([warmups, *rounds], -1):
        for prompt in prompts:
            for way in names[asked % 3 :] + names[: asked % 3]:
                before = _passes(metrics)
                answer = await _patiently(clients[way], prompt, _WAYS[way])
                await asyncio.sleep(_PAUSE_S + 2 * condition.rtt_s)
                samples.append(_sample(way, prompt.kind, number, answer, _passes(metrics) - before))
            asked += 1
    return [sample for sample in samples if sample.round >= 0]


async def _patiently(client: AsyncClient, prompt: Prompt, options: Mapping[str, Any]) -> Answer:
    """The answer, after a pause where the demo tenant's limit of requests per minute is used up."""
    while True:
        try:
            return await client.generate(prompt.prompt, max_tokens=_LENGTHS[prompt.kind], cache="bypass", **options)
        except QuotaExceeded as spent:
            await asyncio.sleep(spent.retry_after_s or 1.0)


def _sample(way: str, kind: str, number: int, answer: Answer, passes: float) -> Sample:
    return Sample(
        way=way,
        kind=kind,
        round=number,
        ttft_s=answer.ttft_s,
        total_s=answer.total_s,
        tokens=len(answer.token_ids),
        passes=passes,
        asks=answer.usage.asks,
        handed_over=answer.usage.handed_over,
    )


def _passes(metrics: str) -> float:
    (status,) = read_all([metrics])
    return next(sample.value for sample in status.samples if sample.name == "tiermesh_cloud_steps_total")


def _plot(kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Mean whole-answer time by round trip, a line per way and loss."""
    lines = {}
    for loss in dict.fromkeys(row["loss"] for row in rows):
        mine = [row for row in rows if row["loss"] == loss]
        rtts = [1000 * row["rtt_s"] for row in mine]
        for way in _WAYS:
            lines[f"{way}, {100 * loss:g} % lost"] = rtts, [row[kind][way]["total_ms"]["mean"] for row in mine]
    title = f"One {kind} over a wide area, whole answer"
    plot_lines(f"wide_{kind}", title, ("round trip, milliseconds", "milliseconds, mean"), lines)

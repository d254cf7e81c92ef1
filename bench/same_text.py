"""Same seed, same text: whatever way a request takes, the worker's own answer comes out.

Each run asks the worker alone, then through the router, through the edge with `exact` quality, and over the relay with
the answer's first k ids handed over, as a draft and as delivered. A run that parts must do so at a near tie of the
logits: other batch shapes round differently in fp32.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .. import Answer, AsyncClient
from ..common.config import DEMO_KEY
from ..common.frames import Hello, Open, RelayFinished, RelayTokens, SessionMode, Verdict
from ..common.noise import gumbel
from ..common.relay_link import LinkSession, RelayLink
from ..common.types import Request, Sampling
from ..supervise import ANY_PORTS, Mesh
from .prompts import heldout
from .results import require_green, write_result

NEAR_TIE = 1e-3
"""Nats between the two best candidates, noise included, below which fp32 rounding may decide."""


@dataclass(frozen=True, slots=True)
class Run:
    """One prompt with its sampling."""

    prompt: str
    temperature: float
    seed: int
    max_tokens: int = 48


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a way gave other ids than the worker alone."""

    way: str
    run: Run
    index: int
    """Answer index of the first other id; −1 when one answer only ended earlier."""
    margin: float
    """Nats by which the worker's id led the other there, noise included."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of all runs."""

    runs: int
    comparisons: int
    partings: tuple[Parting, ...]

    @property
    def parted_runs(self) -> int:
        """Runs that parted on any way."""
        return len({parting.run for parting in self.partings})


def make_runs(prompts: Sequence[str], count: int, seed: int) -> list[Run]:
    """Half greedy, half at temperature 0.8, over the prompts in turn."""
    rng = random.Random(seed)
    return [Run(prompts[(i // 2) % len(prompts)], 0.8 if i % 2 else 0.0, rng.randrange(1 << 64)) for i in range(count)]


async def check(runs: Sequence[Run], *, worker: str, router: str, edge: str, key: str) -> Report:
    """Addresses are "host:port"; the worker must take requests without a token."""
    partings: list[Parting] = []
    link = RelayLink(worker, Hello("same-text"))
    keeping = asyncio.create_task(link.run())
    try:
        if not await link.wait_connected(10):
            raise link.error or RuntimeError("the worker's relay did not answer")
        async with (
            AsyncClient(worker) as alone,
            AsyncClient(router, api_key=key) as routed,
            AsyncClient(edge, api_key=key) as edged,
        ):
            for run in runs:
                partings += await _check_run(run, alone, routed, edged, link)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    return Report(len(runs), 4 * len(runs), tuple(partings))


async def _check_run(
    run: Run, alone: AsyncClient, routed: AsyncClient, edged: AsyncClient, link: RelayLink
) -> list[Parting]:
    truth = await _ask(alone, run)
    ids = truth.token_ids
    cut = random.Random(run.seed).randrange(len(ids) + 1)
    ways = {
        "router": (await _ask(routed, run)).token_ids,
        "edge exact": (await _ask(edged, run, exact=True)).token_ids,
        f"handed over at {cut}": await _hand_over(link, run, ids[:cut], draft=True),
        f"resumed at {cut}": await _hand_over(link, run, ids[:cut], draft=False),
    }
    return [await _parting(alone, way, run, ids, got) for way, got in ways.items() if got != ids]


async def _ask(client: AsyncClient, run: Run, *, exact: bool = False) -> Answer:
    return await client.generate(
        run.prompt,
        max_tokens=run.max_tokens,
        temperature=run.temperature,
        seed=run.seed,
        cache="bypass",
        quality="exact" if exact else None,
    )


async def _hand_over(link: RelayLink, run: Run, prefix: tuple[int, ...], *, draft: bool) -> tuple[int, ...]:
    """All ids of the answer when the worker gets its first ids as a draft to verify, or as delivered."""
    session = link.session()
    sampling = Sampling(temperature=run.temperature, seed=run.seed)
    request = Request(run.prompt, run.max_tokens, sampling=sampling, request_id=f"{run.seed:x}")
    mode = SessionMode.VERIFY if draft else SessionMode.GENERATE
    session.open(Open(0, 0, request, mode, delivered_ids=() if draft else prefix))
    if draft:
        session.ask(0, prefix, hand_over=True)
    return await _collect(session, () if draft else prefix, prefix)


async def _collect(session: LinkSession, ids: tuple[int, ...], draft: tuple[int, ...]) -> tuple[int, ...]:
    async with asyncio.timeout(60):
        while True:
            frame = await session.receive()
            if isinstance(frame, Verdict):
                ids = draft[: frame.stands] + (() if frame.next_id is None else (frame.next_id,))
            elif isinstance(frame, RelayTokens):
                ids += frame.ids
            elif isinstance(frame, RelayFinished):
                return ids[: frame.usage.completion_tokens]


async def _parting(alone: AsyncClient, way: str, run: Run, ids: tuple[int, ...], got: tuple[int, ...]) -> Parting:
    """How near a tie the first difference was, by the worker's own log-probabilities of both ids."""
    index = next((i for i, (a, b) in enumerate(zip(ids, got, strict=False)) if a != b), None)
    if index is None:
        return Parting(way, run, -1, float("inf"))
    prompt = (await alone.score(run.prompt)).token_ids
    before = len(prompt) + index
    mine = (await alone.score(prompt + ids[: index + 1])).logprobs[before - 1]
    other = (await alone.score(prompt + ids[:index] + (got[index],))).logprobs[before - 1]
    margin = mine - other
    if run.temperature:
        noise = gumbel(run.seed, index, [ids[index], got[index]])
        margin = margin / run.temperature + float(noise[0] - noise[1])
    return Parting(way, run, index, abs(margin))


def main(arguments: Sequence[str]) -> None:
    """`same_text [--runs 300] [--force]`; writes same_text.json."""
    parser = argparse.ArgumentParser(prog="same_text")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--force", action="store_true", help="run on a tree that was not tested")
    options = parser.parse_args(arguments)
    green = require_green(options.force)
    report = asyncio.run(_on_a_mesh(make_runs(heldout(), options.runs, options.seed)))
    for parting in report.partings:
        run = parting.run
        print(f"parted: {parting.way}, T={run.temperature}, index {parting.index}, margin {parting.margin:.2e} nats")
    print(f"{report.parted_runs} of {report.runs} runs parted, in {report.comparisons} comparisons")
    figures = {
        "runs": report.runs,
        "comparisons": report.comparisons,
        "parted_runs": report.parted_runs,
        "near_ties": sum(parting.margin < NEAR_TIE for parting in report.partings),
        "partings": [asdict(parting) for parting in report.partings],
    }
    write_result("same_text", figures, green=green)


async def _on_a_mesh(runs: Sequence[Run]) -> Report:
    async with Mesh(ports=ANY_PORTS) as mesh:
        at = mesh.addresses
        return await check(runs, worker=at["cloud"], router=at["router"], edge=at["edge"], key=DEMO_KEY)

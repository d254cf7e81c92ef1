"""Every hop of a request through the SDK: edge prefill and step, decision, relay, queue, cloud prefill and step."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tiermesh import Answer, AsyncClient, Quality
from tiermesh.common import wire, wire_events
from tiermesh.common.types import Event, Origin, Request, Tokens
from tiermesh.supervise import ANY_PORTS, Mesh
from tiermesh.v1 import inference_pb2 as pb

from .kit import percentiles
from .prompts import heldout
from .results import plot_bars, require_green, write_result

Figures = dict[str, dict[str, float]]
_WARM_UPS = 5
_PAUSE_S = 0.1
"""Long enough for the edge's audit of the answer before, which begins after 30 ms of quiet and takes about 20."""
_KEY = "demo-key"


def main(arguments: Sequence[str]) -> None:
    """Starts a mesh, asks held-out commands, prints and writes what each hop took."""
    parser = argparse.ArgumentParser(prog="tiermesh bench walk", description=__doc__)
    parser.add_argument("--prompts", type=int, default=300, help="held-out commands to ask in each way")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    figures = asyncio.run(_measure(heldout("command")[: given.prompts])) | _serialization()
    path = write_result("walk", figures, green=green)
    shown = {name: ms["p50"] for name, ms in figures.items() if "whole" not in name}
    plot_bars("walk", "Where a request's time goes (median, one request at a time)", "milliseconds", shown)
    print(json.dumps(figures) if given.json else _table(figures, path))


async def _measure(prompts: Sequence[str]) -> Figures:
    async with Mesh(ports=ANY_PORTS) as mesh:
        async with AsyncClient(mesh.addresses["edge"], api_key=_KEY) as edge:
            bounded = await _ask_all(edge, prompts, Quality.BOUNDED)
            code = await _ask_all(edge, heldout("code")[:20], Quality.BOUNDED)
        async with AsyncClient(mesh.addresses["router"], api_key=_KEY) as router:
            through_router = await _ask_all(router, prompts, Quality.EXACT)
        async with AsyncClient(mesh.addresses["cloud"], api_key=_KEY) as worker:
            direct = await _ask_all(worker, prompts, Quality.EXACT)
    alone = [answer for answer in bounded if not answer.usage.asks]
    return (
        _edge_figures(alone)
        | _ask_figures("", bounded)
        | _ask_figures(" of a longer answer", [answer for answer in code if answer.usage.asks > 4])
        | _cloud_figures(through_router, direct)
    )


async def _ask_all(client: AsyncClient, prompts: Sequence[str], quality: Quality) -> list[Answer]:
    """One request at a time, none from a cache, with a pause in between: the hops are measured unloaded."""
    answers = []
    for prompt in [*prompts[:_WARM_UPS], *prompts]:
        answers.append(await client.generate(prompt, max_tokens=96, quality=quality, cache="bypass"))
        await asyncio.sleep(_PAUSE_S)
    return answers[_WARM_UPS:]


def _stage_s(answer: Answer, hop: str, stage: str) -> float:
    return sum(t.duration_s for t in answer.timings if (t.hop, t.stage) == (hop, stage))


def _edge_figures(alone: Sequence[Answer]) -> Figures:
    """Of answers that the edge gave by itself; `rest` is what the hops did not see: SDK, gRPC, conversion."""
    stages = ("prefill", "decode", "decision")
    return {
        "edge-answered command, whole": _ms(a.total_s for a in alone),
        "edge prefill": _ms(_stage_s(a, "edge", "prefill") for a in alone),
        "edge step": _ms(_stage_s(a, "edge", "decode") / len(a.token_ids) for a in alone if a.token_ids),
        "edge decision": _ms(_stage_s(a, "edge", "decision") for a in alone),
        "SDK, gRPC and the edge's loop": _ms(a.total_s - sum(_stage_s(a, "edge", s) for s in stages) for a in alone),
    }


def _ask_figures(which: str, answers: Iterable[Answer]) -> Figures:
    """Per ask, over answers that were not handed over: all that it added, and what of it was not the cloud's work.

    The first ask of an answer has the cloud read the prompt; in a longer answer the later ones outweigh it.
    """
    asked = [a for a in answers if a.usage.asks and not a.usage.handed_over]
    if not asked:
        return {}
    return {
        f"an ask{which}": _ms(_stage_s(a, "edge", "relay") / a.usage.asks for a in asked),
        f"cloud verification{which}": _ms(_stage_s(a, "cloud", "verify") / a.usage.asks for a in asked),
        f"relay, there and back{which}": _ms(
            (_stage_s(a, "edge", "relay") - _stage_s(a, "cloud", "verify")) / a.usage.asks for a in asked
        ),
    }


def _cloud_figures(through_router: Sequence[Answer], direct: Sequence[Answer]) -> Figures:
    """Of answers that the worker gave alone, asked through the router and without it."""
    return {
        "router queue": _ms(_stage_s(a, "router", "queue") for a in through_router),
        "cloud queue": _ms(_stage_s(a, "cloud", "queue") for a in through_router),
        "cloud prefill": _ms(_stage_s(a, "cloud", "prefill") for a in through_router),
        "cloud step": _ms(
            _stage_s(a, "cloud", "decode") / (len(a.token_ids) - 1) for a in through_router if len(a.token_ids) > 1
        ),
        "router, whole cost per answer": _ms(
            r.total_s - d.total_s for r, d in zip(through_router, direct, strict=True)
        ),
    }


def _serialization(repeats: int = 2000) -> Figures:
    """Of one request and of one token event: to bytes and back."""
    request = Request("dim the kitchen lights to 40 %\n", 48, request_id="0" * 32)
    event: Event = Tokens((1, 2, 3, 4), "the lights", Origin.EDGE)

    def request_there_and_back() -> None:
        wire.request_from(pb.GenerateRequest.FromString(wire.request_to(request).SerializeToString()))

    def event_there_and_back() -> None:
        wire_events.event_from(pb.GenerateResponse.FromString(wire_events.event_to(event).SerializeToString()))

    return {
        "serialization of a request": _ms(_times(request_there_and_back, repeats)),
        "serialization of an event": _ms(_times(event_there_and_back, repeats)),
    }


def _times(work: Callable[[], None], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def _ms(seconds: Iterable[float]) -> dict[str, float]:
    return {
        name: round(value if name == "count" else value * 1000, 4) for name, value in percentiles(list(seconds)).items()
    }


def _table(figures: Figures, path: Path) -> str:
    lines = [f"{'milliseconds':<44}{'p50':>9}{'p95':>9}{'n':>7}"]
    lines += [f"{name:<44}{ms['p50']:>9.3f}{ms['p95']:>9.3f}{ms['count']:>7.0f}" for name, ms in figures.items()]
    return "\n".join([*lines, f"written to {path}"])

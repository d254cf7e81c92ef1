"""The demo: a whole mesh, twelve held-out prompts, twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import aclosing
from itertools import cycle, islice
from typing import Any

from rich.console import Console

from tiermesh.common.errors import InternalError, ModelDirError
from tiermesh.common.types import Tokens
from tiermesh.models import starter

from .answer import Answer, Gatherer
from .cli_ask import DEMO_KEY
from .client import AsyncClient
from .show import coloured, facts, legend
from .supervise import ANY_PORTS, Mesh

_COMMANDS, _CODES = 8, 4
_MAX_TOKENS = {"command": 96, "code": 64}


def chosen_prompts() -> list[tuple[str, str]]:
    """(kind, prompt) of eight commands, over the levels in turn, and four pieces of code.

    The first by SHA-256 of the prompt: nobody picked them. Raises ModelDirError when the starter models are not there.
    """
    try:
        lines = (starter() / "heldout.jsonl").read_text().splitlines()
    except OSError as exc:
        raise ModelDirError(f"the starter models are not installed: can't read {exc.filename}") from exc
    rows = sorted((json.loads(line) for line in lines), key=lambda row: _hash(row["prompt"]))
    levels = sorted({row["level"] for row in rows if row["kind"] == "command"})
    by_level = {level: iter([r for r in rows if r.get("level") == level]) for level in levels}
    commands = [next(by_level[level])["prompt"] for level in islice(cycle(levels), _COMMANDS)]
    codes = [row["prompt"] for row in rows if row["kind"] == "code"][:_CODES]
    return [("command", prompt) for prompt in commands] + [("code", prompt) for prompt in codes]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def run_demo(as_json: bool) -> None:
    """Runs the demo and prints it; the last line is JSON if asked for. Raises TiermeshError when anything fails."""
    prompts = chosen_prompts()
    console = Console(highlight=False)
    with console.status("starting router, worker and edge node …"):
        mesh = await Mesh(ports=ANY_PORTS).__aenter__()
    try:
        addresses = ", ".join(f"{name} {address}" for name, address in mesh.addresses.items())
        console.print(f"the mesh runs: {addresses}", style="dim", soft_wrap=True)
        console.print(legend())
        answers: list[tuple[str, Answer]] = []
        async with AsyncClient(mesh.addresses["edge"], api_key=DEMO_KEY) as client:
            for title in ("Twelve prompts that the models never saw", "The same again"):
                console.rule(title)
                for kind, prompt in prompts:
                    answers.append((prompt, await _ask(client, console, prompt, _MAX_TOKENS[kind])))
    finally:
        await mesh.__aexit__(None, None, None)
    summary = _summary(answers)
    tokens = ", ".join(f"{count} {origin}" for origin, count in summary["tokens_by_origin"].items())
    console.print(f"tokens by origin: {tokens}; nothing is left running", style="bold")
    if as_json:
        print(json.dumps(summary))


async def _ask(client: AsyncClient, console: Console, prompt: str, max_tokens: int) -> Answer:
    """Asks one prompt and shows its answer."""
    gatherer, pieces, answer = Gatherer(), list[Tokens](), None
    async with aclosing(client.stream(prompt, max_tokens=max_tokens, quality="bounded")) as events:
        async for event in events:
            if isinstance(event, Tokens):
                pieces.append(event)
            answer = gatherer.add(event) or answer
    if answer is None:
        raise InternalError("an answer ended without its end")
    console.print(prompt.rstrip("\n"), style="bold", markup=False, soft_wrap=True)
    console.print(coloured(pieces), soft_wrap=True)
    console.print(facts(answer), "", sep="\n", soft_wrap=True)
    return answer


def _summary(answers: list[tuple[str, Answer]]) -> dict[str, Any]:
    origins = Counter({"edge": 0, "cloud": 0, "cache": 0})
    for _, answer in answers:
        for span in answer.spans:
            origins[span.origin.value] += span.tokens
    return {
        "answers": [_facts(prompt, answer) for prompt, answer in answers],
        "tokens_by_origin": dict(origins),
        "ok": True,
    }


def _facts(prompt: str, answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "prompt": prompt,
        "text": answer.text,
        "finish_reason": answer.finish_reason.value,
        "spans": [{"origin": span.origin.value, "tokens": span.tokens} for span in answer.spans],
        "ttft_ms": round(answer.ttft_s * 1000, 3),
        "total_ms": round(answer.total_s * 1000, 3),
        "cached": usage.cached,
        "alone": usage.alone,
        "asks": usage.asks,
        "handed_over": usage.handed_over,
    }

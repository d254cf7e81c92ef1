"""How good the starter pair is on held-out text: losses, exact match, agreement, coupled match, runs, answers.

Commands are held out by template and by pair, code by file. Agreement is counted on the true text, place by place: the
deployed edge (quantized, at full depth) against the float32 cloud. The coupled match is the same at T = 1, both drawing
with the shared noise; a run is what stands between two places that differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import LlamaForCausalLM

from ..common.noise import gumbel
from ..common.types import Sampling
from ..models import starter
from ..training.calibrate import TorchLabeller
from ..training.corpus import read_corpus
from ..training.greedy import EdgeReader, cloud_answer, cloud_choices
from ..training.heldout import Prompt, command_prompts, read_heldout
from .results import require_green, write_result

_SEED = 5150
"""Of the commands: other ones than those of the calibration."""
_CODE_TOKENS = 128
"""Of each held-out source file."""
_LENGTHS = {"command": 96, "code": 48}
_SHOWN = {"command": 9, "code": 3}
"""Answers that are printed: the first ones of heldout.jsonl."""


@dataclass(frozen=True, slots=True)
class Text:
    """One true text: what is predicted begins at `start`."""

    kind: str
    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class Places:
    """Of one text, one entry per predicted place."""

    same: list[bool]
    """Greedy."""
    coupled: list[bool]
    """At T = 1 with the same noise."""
    edge_nats: float
    cloud_nats: float
    """Summed negative log-likelihood of the true ids."""


def main(arguments: Sequence[str]) -> None:
    """Reads the pair, prints and writes its figures."""
    parser = argparse.ArgumentParser(prog="tiermesh bench pair", description=__doc__)
    parser.add_argument("--commands", type=int, default=900, help="held-out commands, the levels in turn")
    parser.add_argument("--files", type=int, default=60, help="held-out source files")
    parser.add_argument("--model", type=Path, default=starter())
    parser.add_argument("--name", default="pair", help="of the result")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--force", action="store_true", help="measure even a tree that was not tested, and record that")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    cloud = LlamaForCausalLM.from_pretrained(given.model / "cloud", dtype=torch.float32)
    reader = EdgeReader(given.model / "edge")
    commands = command_prompts(given.commands, _SEED)
    files = [source.text for source in read_corpus().heldout[: given.files]]
    figures: dict[str, object] = {
        "exact_match_by_level": exact_matches(cloud, reader, commands),
        "on_true_text": asyncio.run(on_true_text(cloud, reader, _texts(reader, commands, files))),
        "megabytes": {
            name: sum(path.stat().st_size for path in (given.model / name).iterdir()) / 1e6
            for name in ("cloud", "edge")
        },
        "answers": completions(cloud, reader, read_heldout(given.model / "heldout.jsonl")),
    }
    path = write_result(given.name, figures, green=green)
    if given.json:
        print(json.dumps(figures))
    else:
        _show(figures)
        print(f"written to {path}")


def exact_matches(
    cloud: LlamaForCausalLM, reader: EdgeReader, prompts: Sequence[Prompt]
) -> dict[str, dict[str, float]]:
    """Share of commands answered with the very truth, by level and model, greedy.

    The cloud is judged in one pass over the truth: its greedy answer is the truth where every choice is.
    """
    hits: dict[str, dict[str, list[bool]]] = {}
    for prompt in prompts:
        ids = reader.tokenizer.encode(prompt.prompt).ids
        assert prompt.truth is not None, "commands carry their truth"
        truth = [*reader.tokenizer.encode(prompt.truth, add_special_tokens=False).ids, reader.eos_ids[0]]
        row = hits.setdefault(str(prompt.level), {"cloud": [], "edge": []})
        row["cloud"].append(cloud_choices(cloud, [*ids, *truth], len(ids)) == truth)
        row["edge"].append(reader.answer(ids, _LENGTHS["command"]) == truth)
    return {level: {name: statistics.mean(row[name]) for name in row} for level, row in sorted(hits.items())}


def _texts(reader: EdgeReader, commands: Sequence[Prompt], files: Sequence[str]) -> list[Text]:
    texts = []
    for prompt in commands:
        start = len(reader.tokenizer.encode(prompt.prompt).ids)
        ids = [*reader.tokenizer.encode(prompt.prompt + (prompt.truth or "")).ids, reader.eos_ids[0]]
        texts.append(Text("command", ids, start))
    return texts + [Text("code", reader.tokenizer.encode(text).ids[:_CODE_TOKENS], 1) for text in files]


async def on_true_text(
    cloud: LlamaForCausalLM, reader: EdgeReader, texts: Sequence[Text]
) -> dict[str, dict[str, float]]:
    """Losses, agreement and runs by kind, and over the mix of both."""
    found: dict[str, list[Places]] = {"command": [], "code": []}
    for text in texts:
        found[text.kind].append(await _places(cloud, reader, text))
    found["mix"] = found["command"] + found["code"]
    return {kind: _figures(places) for kind, places in found.items()}


async def _places(cloud: LlamaForCausalLM, reader: EdgeReader, text: Text) -> Places:
    seed = zlib.crc32(repr(text.ids).encode())
    sampling = Sampling(temperature=1.0, seed=seed)
    rows = reader.logits(text.ids, text.start)
    wanted = text.ids[text.start :]
    told = cloud_choices(cloud, text.ids, text.start)
    drawn = await TorchLabeller(cloud).choices(text.ids, text.start, sampling)
    everything = np.arange(len(rows[0]))
    mine = [int((row + gumbel(seed, index, everything)).argmax()) for index, row in enumerate(rows)]
    return Places(
        same=[int(row.argmax()) == token for row, token in zip(rows, told, strict=True)],
        coupled=[ours == theirs for ours, theirs in zip(mine, drawn, strict=True)],
        edge_nats=float(sum(_nats(row, token) for row, token in zip(rows, wanted, strict=True))),
        cloud_nats=_cloud_nats(cloud, text),
    )


def _nats(logits: npt.NDArray[np.float32], token: int) -> float:
    peak = logits.max()
    return float(np.log(np.exp(logits - peak).sum()) + peak - logits[token])


@torch.no_grad()
def _cloud_nats(cloud: LlamaForCausalLM, text: Text) -> float:
    ids = torch.tensor(text.ids)
    logits = cloud(ids[None], use_cache=False).logits[0, text.start - 1 : -1]
    return float(functional.cross_entropy(logits, ids[text.start :], reduction="sum"))


def _figures(places: Sequence[Places]) -> dict[str, float]:
    same = [hit for each in places for hit in each.same]
    coupled = [hit for each in places for hit in each.coupled]
    return {
        "places": len(same),
        "cloud_loss_nats": sum(each.cloud_nats for each in places) / len(same),
        "edge_loss_nats": sum(each.edge_nats for each in places) / len(same),
        "same_first_choice": statistics.mean(same),
        "coupled_match": statistics.mean(coupled),
        "mean_run": _mean_run(each.same for each in places),
    }


def _mean_run(texts: Iterable[Sequence[bool]]) -> float:
    """Places that agree per place that doesn't; texts' ends close a run too."""
    runs = [0]
    for same in texts:
        for hit in same:
            if hit:
                runs[-1] += 1
            else:
                runs.append(0)
        runs.append(0)
    closed = runs[:-1]
    return sum(closed) / len(closed)


def completions(cloud: LlamaForCausalLM, reader: EdgeReader, prompts: Sequence[Prompt]) -> list[dict[str, str]]:
    """Greedy answers of both, as they came."""
    chosen = [p for kind, count in _SHOWN.items() for p in [q for q in prompts if q.kind == kind][:count]]
    rows = []
    for prompt in chosen:
        ids, limit = reader.tokenizer.encode(prompt.prompt).ids, _LENGTHS[prompt.kind]
        edge = reader.tokenizer.decode(reader.answer(ids, limit))
        told = reader.tokenizer.decode(cloud_answer(cloud, ids, limit))
        rows.append({"prompt": prompt.prompt, "cloud": told, "edge": edge, "truth": prompt.truth or ""})
    return rows


def _show(figures: Mapping[str, object]) -> None:
    table = Table("figure", "value", title="starter pair")
    for name, value in figures.items():
        if name != "answers":
            rounded = json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 4))
            table.add_row(name, json.dumps(rounded, indent=1))
    Console().print(table)

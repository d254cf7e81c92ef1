"""The figures of the starter's card, printed as a table and written to bench/results/pair_first.json.

`python -P -m tiermesh.training.evaluate`: held-out loss, exact match by level, agreement of the deployed edge with the
cloud, what the trust threshold lets through, speeds, and answers as they came.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from ..common.model_dir import read_json
from ..models import starter
from .batches import code_batches, code_stream, command_batches
from .corpus import read_corpus
from .greedy import EdgeReader, cloud_answer, cloud_choices
from .heldout import Prompt, read_heldout
from .pretrain import weighted_loss
from .threshold import MAX_TOKENS, Judged, judge

RESULTS = Path("bench/results/pair_first.json")
_CODE_TOKENS = 128
"""Of a held-out source window, for the agreement."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """What the threshold does to the units of one kind."""

    units: int
    alone_share: float
    """Of the tokens, shown without asking."""
    differ_share: float
    """Of the units shown alone, those that differ from the cloud's."""


@torch.no_grad()
def losses(cloud: LlamaForCausalLM, reader: EdgeReader, sources: list[str]) -> dict[str, float]:
    """Nats per token: of the answers of held-out commands, of held-out code."""
    commands = command_batches(reader.tokenizer, "heldout", 77, 2000)
    code = code_batches(code_stream(reader.tokenizer, sources, 60_000), 0, 4, 512)
    found: dict[str, list[float]] = {"command": [], "code": []}
    for _ in range(8):
        batch = next(commands)
        batch.weights[batch.weights < 1] = 0.0
        found["command"].append(weighted_loss(cloud(batch.ids, use_cache=False).logits, batch).item())
        batch = next(code)
        found["code"].append(weighted_loss(cloud(batch.ids, use_cache=False).logits, batch).item())
    return {kind: statistics.mean(values) for kind, values in found.items()}


def exact_matches(cloud: LlamaForCausalLM, reader: EdgeReader, prompts: list[Prompt]) -> dict[str, dict[str, float]]:
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
        row["edge"].append(list(reader.answer(ids, MAX_TOKENS["command"]).ids) == truth)
    return {level: {name: statistics.mean(row[name]) for name in row} for level, row in sorted(hits.items())}


def agreement(
    cloud: LlamaForCausalLM, reader: EdgeReader, prompts: list[Prompt], sources: list[str]
) -> dict[str, float]:
    """Share of places where the deployed edge's greedy choice is the cloud's, on true held-out text."""
    same: dict[str, list[bool]] = {"command": [], "code": []}
    for prompt in prompts:
        start = len(reader.tokenizer.encode(prompt.prompt).ids)
        ids = [*reader.tokenizer.encode(prompt.prompt + (prompt.truth or "")).ids, reader.eos_ids[0]]
        pairs = zip(reader.choices(ids, start), cloud_choices(cloud, ids, start), strict=True)
        same["command"] += [edge == other for edge, other in pairs]
    for source in sources:
        ids = reader.tokenizer.encode(source).ids[:_CODE_TOKENS]
        pairs = zip(reader.choices(ids, 1), cloud_choices(cloud, ids, 1), strict=True)
        same["code"] += [edge == other for edge, other in pairs]
    return {kind: statistics.mean(values) for kind, values in same.items()}


def trusted(units: list[Judged], threshold: float) -> dict[str, Trusted]:
    """What would be shown alone at the artifact's threshold, by kind and in all."""
    found = {}
    for kind in ("command", "code", "all"):
        mine = [unit for unit in units if kind in (unit.kind, "all")]
        alone = [unit for unit in mine if unit.score >= threshold]
        tokens = sum(unit.tokens for unit in alone) / max(1, sum(unit.tokens for unit in mine))
        differ = sum(not unit.same for unit in alone) / max(1, len(alone))
        found[kind] = Trusted(len(mine), tokens, differ)
    return found


def speeds(cloud: LlamaForCausalLM, reader: EdgeReader, prompts: list[Prompt]) -> dict[str, float]:
    """Milliseconds, each the median of 5: an edge token, an edge prefill, a token of transformers' own generate."""
    ids = reader.tokenizer.encode(prompts[0].prompt).ids

    def decode() -> None:
        reader.sequence.reset()
        reader.sequence.catch_up(ids)
        for _ in range(64):
            reader.sequence.step(5)

    def prefill() -> None:
        reader.sequence.reset()
        reader.sequence.catch_up((ids * 256)[:256])

    return {
        "edge_token_ms": _median_ms(decode) / 64,
        "edge_prefill_256_ms": _median_ms(prefill),
        "transformers_cloud_token_ms": _median_ms(lambda: cloud_answer(cloud, ids, 24)) / 24,
    }


def _median_ms(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken)


def completions(cloud: LlamaForCausalLM, reader: EdgeReader, prompts: list[Prompt]) -> list[dict[str, str]]:
    """Greedy answers of both, as they came."""
    rows = []
    for prompt in prompts:
        ids, limit = reader.tokenizer.encode(prompt.prompt).ids, MAX_TOKENS[prompt.kind]
        edge = reader.tokenizer.decode(list(reader.answer(ids, limit).ids))
        told = reader.tokenizer.decode(cloud_answer(cloud, ids, limit))
        rows.append({"prompt": prompt.prompt, "cloud": told, "edge": edge, "truth": prompt.truth or ""})
    return rows


def evaluate(directory: Path) -> dict[str, object]:
    """All figures of a starter directory."""
    cloud = LlamaForCausalLM.from_pretrained(directory / "cloud", dtype=torch.float32)
    reader = EdgeReader(directory / "edge")
    prompts = read_heldout(directory / "heldout.jsonl")
    commands = [prompt for prompt in prompts if prompt.kind == "command"]
    code = [prompt for prompt in prompts if prompt.kind == "code"]
    sources = [source.text for source in read_corpus().heldout]
    threshold = read_json(directory / "edge" / "edge.json")["trust"]["min_unit_probability"]
    units = judge(reader, cloud, prompts)
    return {
        "heldout_loss_nats": losses(cloud, reader, sources),
        "exact_match_by_level": exact_matches(cloud, reader, commands),
        "edge_agrees_with_cloud": agreement(cloud, reader, commands, sources[:40]),
        "threshold": threshold,
        "trusted_on_heldout_prompts": {kind: asdict(row) for kind, row in trusted(units, threshold).items()},
        "speed": speeds(cloud, reader, commands),
        "megabytes": {
            name: sum(path.stat().st_size for path in (directory / name).iterdir()) / 1e6 for name in ("cloud", "edge")
        },
        "completions": completions(cloud, reader, commands[:6] + code[:3]),
    }


def show(figures: dict[str, object]) -> None:
    """Print the figures, numbers rounded."""
    table = Table("figure", "value", title="starter pair")
    for name, value in figures.items():
        if name != "completions":
            table.add_row(
                name, json.dumps(json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 4)))
            )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the starter pair on held-out text.")
    parser.add_argument("--model", type=Path, default=starter())
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    figures = evaluate(options.model)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    show(figures)


if __name__ == "__main__":
    main()

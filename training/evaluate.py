"""The figures of the starter's card, printed as a table and written to bench/results/pair_first.json.

`python -P -m tiermesh.training.evaluate`: held-out loss, exact match by level, agreement of the deployed edge with the
cloud, what the calibration lets through, speeds, and answers as they came.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from ..common.errors import ModelDirError
from ..common.types import Sampling
from ..edge.calibration_file import read_calibration
from ..edge.measuring import Decoder, label_class
from ..edge.report import bound_facts
from ..models import starter
from .batches import code_batches, code_stream, command_batches
from .calibrate import TorchLabeller
from .corpus import read_corpus
from .greedy import EdgeReader, cloud_answer, cloud_choices
from .heldout import Prompt, read_heldout
from .pretrain import weighted_loss

RESULTS = Path("bench/results/pair_first.json")
_CODE_TOKENS = 128
"""Of a held-out source window, for the agreement."""


MAX_TOKENS = {"command": 96, "code": 48}
_DELTA = 0.05
"""The bound of the demo's tenant."""


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
        row["edge"].append(reader.answer(ids, MAX_TOKENS["command"]) == truth)
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


def trusted(edge: Path, cloud: LlamaForCausalLM, prompts: list[Prompt]) -> dict[str, object]:
    """What would be shown alone of greedy answers to prompts that no calibration saw, by kind and in all."""
    calibration = read_calibration(edge)
    measured = calibration and calibration.of(Sampling())
    if not calibration or not measured:
        raise ModelDirError(f"{edge} is not calibrated; run python -P -m tiermesh.training.calibrate")
    decoder, labeller, labelled = Decoder(edge), TorchLabeller(cloud), {}
    try:
        for kind in ("command", "code"):
            texts = [prompt.prompt for prompt in prompts if prompt.kind == kind]
            labels = label_class(decoder, labeller, texts, measured.sampling, MAX_TOKENS[kind], lambda: None)
            labelled[kind] = asyncio.run(labels)
    finally:
        decoder.close()
    labelled["all"] = labelled["command"] + labelled["code"]
    return {kind: bound_facts(measured, calibration.epsilon, _DELTA, units) for kind, units in labelled.items()}


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
        edge = reader.tokenizer.decode(reader.answer(ids, limit))
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
    return {
        "heldout_loss_nats": losses(cloud, reader, sources),
        "exact_match_by_level": exact_matches(cloud, reader, commands),
        "edge_agrees_with_cloud": agreement(cloud, reader, commands, sources[:40]),
        "trusted_on_heldout_prompts": trusted(directory / "edge", cloud, prompts),
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

"""Calibrates an edge directory against a running mesh: `python -P -m tiermesh.edge.calibrate --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..common.errors import ConfigError, InvalidRequest, TiermeshError
from ..common.rpc import channel
from .calibration import CLASSES, Calibration, SamplingClass
from .calibration_file import write_calibration
from .labelling import Units
from .measuring import Decoder, Plan, calibrate
from .report import facts, print_report
from .score_labeller import ScoreLabeller, served_model

TEMPERATURES = (0.0, 0.8)
"""Whose classes are calibrated unless others are asked for."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the command line asks for."""

    edge: Path
    cloud: str
    """host:port of a router, a worker or an edge node."""
    key: str
    """From TIERMESH_API_KEY: a command line is everybody's to read."""
    prompts: Path
    plan: Plan
    threads: int
    as_json: bool


def main() -> int:
    """Exit status: 0 when calibration.json is written, 1 on failure, 2 on wrong use, 130 on Ctrl-C."""
    job = read_job(sys.argv[1:])
    try:
        calibration, labelled = asyncio.run(run(job))
    except TiermeshError as error:
        print(f"calibrate: {error.message} [{error.reason}]", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("calibrate: interrupted; nothing was written", file=sys.stderr)
        return 130
    if job.as_json:
        print(json.dumps(facts(calibration, labelled)))
    else:
        print_report(calibration, labelled)
    return 0


async def run(job: Job) -> tuple[Calibration, dict[str, list[Units]]]:
    """Labels, fits, tests, and writes the file. Raises TiermeshError; then the old file is still there."""
    prompts = read_prompts(job.prompts)
    decoder = Decoder(job.edge, job.threads)
    try:
        async with channel(job.cloud) as mesh:
            served = await served_model(mesh, job.key, decoder.artifact.digests)
            labeller = ScoreLabeller(mesh, job.key, served.id)
            answers = len(job.plan.classes) * len(set(prompts))
            with _progress() as progress:
                progress.console.print(f"labelling {answers} answers of {served.id}'s edge", highlight=False)
                bar = progress.add_task("answers", total=answers)
                calibration, labelled = await calibrate(
                    decoder, labeller, served.digests.model, prompts, job.plan, lambda: progress.advance(bar)
                )
            if (await served_model(mesh, job.key, decoder.artifact.digests)).digests != served.digests:
                raise ConfigError("the cloud's model was replaced while it labelled; calibrate again")
    finally:
        decoder.close()
    write_calibration(job.edge, calibration)
    return calibration, labelled


def read_prompts(path: Path) -> list[str]:
    """The `prompt` of every line of a JSONL file. Raises InvalidRequest that names the line."""
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"{path} can't be read: {exc}") from exc
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError) as exc:
            raise InvalidRequest(f'{path}:{number}: wants one JSON object with "prompt" ({exc!r})') from exc
        if not isinstance(prompt, str) or not prompt:
            raise InvalidRequest(f'{path}:{number}: "prompt" must be a text that is not empty')
        prompts.append(prompt)
    return prompts


def classes_of(temperatures: Sequence[float]) -> tuple[SamplingClass, ...]:
    """The sampling classes that hold these temperatures, each once. Raises InvalidRequest for others."""
    chosen = []
    for temperature in temperatures:
        held = [c for c in CLASSES if temperature == c.up_to == 0 or c.above < temperature <= c.up_to]
        if not held:
            raise InvalidRequest(f"temperature {temperature:g} is in no class; they are from 0 to {CLASSES[-1].up_to}")
        chosen += [each for each in held if each not in chosen]
    return tuple(chosen)


def read_job(arguments: Sequence[str]) -> Job:
    """The command line, checked; wrong use exits with 2."""
    parser = argparse.ArgumentParser(prog="tiermesh calibrate", description="Calibrate an edge's trust.")
    parser.add_argument("--edge", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cloud", required=True, metavar="HOST:PORT", help="a router, a worker or an edge node")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--temperature", type=float, action="append", metavar="X")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if not (math.isfinite(given.epsilon) and 0 < given.epsilon < 1):
        parser.error(f"--epsilon is a probability between 0 and 1, not {given.epsilon}")
    if given.max_tokens < 1 or given.threads < 1:
        parser.error("--max-tokens and --threads are at least 1")
    try:
        plan = Plan(classes_of(given.temperature or TEMPERATURES), given.epsilon, given.max_tokens)
    except InvalidRequest as error:
        parser.error(error.message)
    key = os.environ.get("TIERMESH_API_KEY", "")
    return Job(given.edge, given.cloud, key, given.prompts, plan, given.threads, given.json)


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())

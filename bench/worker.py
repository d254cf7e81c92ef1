"""Tokens per second of the worker's engine against transformers' generate: same model, same threads, fixed lengths."""

from __future__ import annotations

import argparse
import queue
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..cloud.engine import Engine, EngineConfig
from ..cloud.outputs import Ended, Failed, Output
from ..cloud.request import Job
from ..cloud.runner import ModelRunner, Placement
from ..cloud.submission import Submission
from ..common.text import Text
from ..models import starter
from .apart import Apart
from .kit import paired_ratio
from .results import plot_bars, require_green, write_result

STREAMS = (1, 16)


class Directly:
    """Stands in for an event loop: outputs are taken on the engine's thread, so that gRPC plays no part."""

    def call_soon_threadsafe(self, callback: Any, *arguments: Any) -> None:
        """Calls back at once."""
        callback(*arguments)


def main(arguments: Sequence[str]) -> None:
    """Measures both at each number of streams, prints and writes the ratios."""
    parser = argparse.ArgumentParser(prog="tiermesh bench worker", description=__doc__)
    parser.add_argument("--model", type=Path, default=starter() / "cloud", metavar="DIR")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--force", action="store_true", help="measure a tree that was not tested")
    given = parser.parse_args(arguments)
    green = require_green(given.force)
    torch.set_num_threads(given.threads)
    shape = given.prompt_tokens, given.answer_tokens
    figures: dict[str, Any] = {"prompt_tokens": shape[0], "answer_tokens": shape[1], "threads": given.threads}
    for streams in STREAMS:
        prompts = make_prompts(streams, given.prompt_tokens)
        ours = Ours(given.model, prompts, *shape)
        with Apart(Theirs, given.model, prompts, shape[1]) as theirs:
            ratio = paired_ratio(ours.rate, theirs.rate, pairs=given.pairs)
        ours.close()
        figures[f"streams_{streams}"] = ratio.facts()
        print(f"{streams:>3} streams: {ratio} times the tokens/s of transformers")
    path = write_result("worker", figures, green=green)
    bars = {f"{n} streams": figures[f"streams_{n}"]["ratio"] for n in STREAMS}
    plot_bars("worker", "tokens/s of the worker's engine over transformers' generate", "ratio", bars)
    print(path)


def make_prompts(streams: int, length: int) -> list[list[int]]:
    """Random ids; what they say does not matter at fixed lengths."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 4000, (streams, length), generator=generator).tolist()


class Ours:
    """The engine with all streams submitted at once."""

    def __init__(self, directory: Path, prompts: list[list[int]], prompt_tokens: int, answer_tokens: int) -> None:
        self._prompts, self._answer_tokens = prompts, answer_tokens
        pool = len(prompts) * (prompt_tokens + answer_tokens + 16)
        runner = ModelRunner.load(directory, Placement(torch.device("cpu"), torch.float32), pool)
        self._engine = Engine(runner, Text(directory), EngineConfig(slots=len(prompts)))
        self._engine.start(Directly())  # type: ignore[arg-type]

    def rate(self) -> float:
        """Answer tokens per second, prompts included in the time."""
        ends: queue.SimpleQueue[Output] = queue.SimpleQueue()

        def take(output: Output) -> None:
            if isinstance(output, Ended | Failed):
                ends.put(output)

        began = time.perf_counter()
        for prompt in self._prompts:
            self._engine.submit(Submission(Job.GENERATE, tuple(prompt), self._answer_tokens), take)
        tokens = 0
        for _ in self._prompts:
            end = ends.get()
            if isinstance(end, Failed):
                raise end.error
            assert isinstance(end, Ended)
            tokens += end.answer_tokens
        assert tokens == len(self._prompts) * self._answer_tokens
        return tokens / (time.perf_counter() - began)

    def close(self) -> None:
        """Ends the engine's thread."""
        self._engine.stop()


class Theirs:
    """One call of `generate` with all streams as its batch."""

    def __init__(self, directory: Path, prompts: list[list[int]], answer_tokens: int) -> None:
        import transformers

        self._model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self._prompts, self._answer_tokens = torch.tensor(prompts), answer_tokens

    def rate(self) -> float:
        """Answer tokens per second, prompts included in the time."""
        length = self._answer_tokens
        began = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                self._prompts,
                attention_mask=torch.ones_like(self._prompts),
                do_sample=False,
                max_new_tokens=length,
                min_new_tokens=length,
            )
        assert out.shape[1] == self._prompts.shape[1] + length
        return len(self._prompts) * length / (time.perf_counter() - began)

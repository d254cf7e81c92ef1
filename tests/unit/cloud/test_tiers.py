"""What tiers and the prefix index mean on a real model: who waits, who gives way, what is found, and the same text."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tiermesh.cloud.engine import Engine, EngineConfig
from tiermesh.cloud.outputs import Ended, Failed, Output, Produced
from tiermesh.cloud.request import Job
from tiermesh.cloud.runner import ModelRunner, Placement
from tiermesh.cloud.submission import Submission
from tiermesh.common.config import default_mesh
from tiermesh.common.errors import InternalError, InvalidRequest
from tiermesh.common.text import Text
from tiermesh.common.types import Sampling
from tiermesh.training.random_model import write_random_model

CPU = Placement(torch.device("cpu"), torch.float32)
WARM = Sampling(temperature=0.8, seed=11)
TIERS = default_mesh({}).tiers


class Directly:
    """Stands in for the event loop: outputs are delivered on the engine's own thread."""

    def call_soon_threadsafe(self, callback: Callable[..., None], *arguments: Any) -> None:
        callback(*arguments)


class Reader:
    """Reads the outputs of one sequence."""

    def __init__(self, engine: Engine, submission: Submission) -> None:
        self._outputs: queue.Queue[Output] = queue.Queue()
        self.ids: list[int] = []
        self.ending: Output | None = None
        engine.submit(submission, self._outputs.put)

    def first(self) -> None:
        output = self._outputs.get(timeout=60)
        assert isinstance(output, Produced)
        self.ids += output.ids

    def end(self) -> list[int]:
        while isinstance(output := self._outputs.get(timeout=60), Produced):
            self.ids += output.ids
        self.ending = output
        return self.ids

    @property
    def cached(self) -> int:
        assert isinstance(self.ending, Ended), self.ending
        return self.ending.cached_prompt_tokens


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"), tie=False)


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Engine]]:
    """Starts engines and stops them in the end."""
    engines: list[Engine] = []

    def start(pool_tokens: int = 2048, poison: int | None = None, **config: Any) -> Engine:
        runner = ModelRunner.load(directory, CPU, pool_tokens)
        if poison is not None:
            runner._model._weights.embedding[poison] = torch.nan
        engine = Engine(runner, Text(directory), EngineConfig(tiers=TIERS, **({"step_tokens": 32} | config)))
        engine.start(Directly())  # type: ignore[arg-type]
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.stop()


def wish(prompt: list[int], max_tokens: int = 12, **more: Any) -> Submission:
    return Submission(
        **({"job": Job.GENERATE, "sampling": WARM, "prompt": tuple(prompt)} | more), max_tokens=max_tokens
    )


def prompt_of(seed: int, length: int) -> list[int]:
    return [0, *torch.randint(3, 300, (length - 1,), generator=torch.Generator().manual_seed(seed)).tolist()]


def answer(engine: Engine, submission: Submission) -> tuple[list[int], int]:
    reader = Reader(engine, submission)
    return reader.end(), reader.cached


def test_the_same_beginning_is_computed_once_for_each_tenant(start: Callable[..., Engine]) -> None:
    engine, plain = start(), start(prefix_cache=False)
    prefix = prompt_of(1, 100)
    tails = [prompt_of(seed, 9) for seed in (2, 3)]
    expected = [answer(plain, wish(prefix + tail)) for tail in tails]
    assert [cached for _, cached in expected] == [0, 0]
    found = [answer(engine, wish(prefix + tail, tenant=tenant)) for tenant in "ab" for tail in tails]
    assert [ids for ids, _ in found] == [ids for ids, _ in expected] * 2
    assert [cached for _, cached in found] == [0, 96, 0, 96]
    assert engine.load.prompts == {"cached": 192, "computed": 4 * 109 - 192}
    whole = answer(engine, wish(prefix[:96], tenant="a"))
    assert whole == (answer(plain, wish(prefix[:96]))[0], 80), "the last token is computed, and its block with it"


def test_a_scored_text_neither_finds_nor_leaves_anything(start: Callable[..., Engine]) -> None:
    engine = start()
    prompt = prompt_of(1, 60)
    for job in (Job.SCORE, Job.GENERATE, Job.SCORE):
        reader = Reader(engine, wish(prompt, job=job))
        reader.end()
    assert engine.load.prompts["cached"] == 0
    assert engine.load.rows["prefill"] >= 2 * 60 + 59


def test_a_realtime_request_takes_the_place_of_batch_and_changes_no_text(start: Callable[..., Engine]) -> None:
    """Slots are full, then the pool is; either way somebody of the lowest tier gives way, and ends as if alone."""
    plain = start()
    low = [wish(prompt_of(seed, 40), 60, tier="batch") for seed in range(6)]
    high = [wish(prompt_of(seed, 60), 8, tier="realtime") for seed in range(10, 16)]
    expected = [answer(plain, w)[0] for w in (*low, *high)]
    for short, config in (("slots", {"slots": 3}), ("kv", {"slots": 12, "pool_tokens": 400})):
        engine = start(**config)
        readers = [Reader(engine, w) for w in low]
        readers[0].first()
        urgent = []
        for w in high:
            urgent.append(Reader(engine, w))
            urgent[-1].end()
            assert readers[-1].ending is None
        for reader in readers:
            reader.end()
        assert [reader.ids for reader in (*readers, *urgent)] == expected
        assert engine.load.preemptions[short] > 0
        assert engine.load.kv_free == 1.0


def test_what_is_not_finite_is_never_found_and_leaves_the_prefix_to_others(start: Callable[..., Engine]) -> None:
    engine, plain = start(poison=2), start()
    prefix = prompt_of(1, 80)
    good = wish([*prefix, 9])
    expected = answer(plain, good)
    assert answer(engine, good) == expected
    for _ in range(2):
        bad = Reader(engine, wish([*prefix[:64], 2, *prefix[65:], *prompt_of(3, 50)]))
        bad.end()
        assert isinstance(bad.ending, Failed)
        assert isinstance(bad.ending.error, InternalError)
        assert answer(engine, good) == (expected[0], 80)
    assert engine.load.prompts["cached"] == 2 * (64 + 80)
    longer = answer(engine, wish([*prefix[:64], *prompt_of(3, 50)]))
    assert longer == (answer(plain, wish([*prefix[:64], *prompt_of(3, 50)]))[0], 64)


def test_what_can_never_fit_is_refused_by_name(start: Callable[..., Engine]) -> None:
    engine = start(pool_tokens=256)
    for tokens, what in ((250, "KV pool of 255"), (2000, "context of 512")):
        with pytest.raises(InvalidRequest, match=what) as refused:
            engine.submit(wish(prompt_of(1, 20), tokens), lambda _: None)
        assert refused.value.violations[0].field == "prompt"
    assert answer(engine, wish(prompt_of(1, 20), 235))[0]


def test_an_unknown_tier_is_served_last_and_none_means_the_usual(start: Callable[..., Engine]) -> None:
    tiers = start().tiers
    assert [tiers.named(name) for name in ("realtime", "", "gold")] == ["realtime", "standard", "batch"]
    assert [tiers.place(name) for name in ("realtime", "", "gold")] == [0, 1, 2]

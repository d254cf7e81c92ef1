"""An engine under measurement: what each stream was told and when, without gRPC."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from tiermesh.common.errors import TiermeshError

from ..cloud.engine import Engine, EngineConfig
from ..cloud.meter import EngineLoad
from ..cloud.outputs import Ended, Failed, Output, Produced
from ..cloud.request import Job
from ..cloud.runner import ModelRunner, Placement, Runner
from ..cloud.submission import Submission
from ..common.text import Text
from ..common.types import Sampling
from .worker import Directly

_PATIENCE_S = 120.0
"""No stream here takes longer, whatever the machine."""

GREEDY = Sampling()

Request = tuple[tuple[int, ...], int]
"""Prompt ids, and how many ids are to be generated."""


def drawn(rng: random.Random, tokens: int) -> tuple[int, ...]:
    """Random ids that every model here has, none of them special; what they say does not matter at fixed lengths."""
    return tuple(rng.randrange(3, 300) for _ in range(tokens))


def uniform(streams: int, prompts: tuple[int, int], answers: tuple[int, int], seed: int = 0) -> list[Request]:
    """Requests with lengths uniform in both ranges, ends included."""
    rng = random.Random(seed)
    return [(drawn(rng, rng.randint(*prompts)), rng.randint(*answers)) for _ in range(streams)]


class Stream:
    """One request's ids and when each came; filled on the engine's thread."""

    def __init__(self) -> None:
        self.number = 0
        self.ids: list[int] = []
        self.times: list[float] = []
        """Of each id, by `time.perf_counter`."""
        self.submitted = time.perf_counter()
        self.ended = False
        self.error: TiermeshError | None = None
        self.watch: Callable[[], None] | None = None
        """Called behind each step that gave an id, on the engine's thread."""
        self._changed = threading.Condition()

    @property
    def ttft_s(self) -> float:
        """From submission to the first id."""
        return self.times[0] - self.submitted

    def take(self, output: Output) -> None:
        """The engine's sink."""
        with self._changed:
            match output:
                case Produced(ids=ids):
                    self.ids += ids
                    self.times += [time.perf_counter()] * len(ids)
                case Failed(error):
                    self.error, self.ended = error, True
                case Ended():
                    self.ended = True
            self._changed.notify_all()
        if self.watch and isinstance(output, Produced):
            self.watch()

    def wait(self, ids: int | None = None) -> None:
        """Until it has so many ids, or has ended; raises its error, and TiermeshError when it takes too long."""
        with self._changed:
            enough = self._changed.wait_for(
                lambda: self.ended or (ids is not None and len(self.ids) >= ids), _PATIENCE_S
            )
        if self.error:
            raise self.error
        if not enough:
            raise TiermeshError(f"a stream gave {len(self.ids)} ids in {_PATIENCE_S:g} s")


ON_CPU = Placement(torch.device("cpu"), torch.float32)


class Served:
    """A running engine. `with` ends its thread."""

    def __init__(self, runner: Runner, text: Text, config: EngineConfig) -> None:
        self._engine = Engine(runner, text, config)
        self._engine.start(Directly())  # type: ignore[arg-type]
        self._tenants = itertools.count()

    @classmethod
    def model(
        cls,
        directory: Path,
        config: EngineConfig,
        pool_tokens: int,
        placement: Placement = ON_CPU,
        *,
        graphs: bool = True,
    ) -> Self:
        """Serves a model directory."""
        runner = ModelRunner.load(directory, placement, pool_tokens)
        if graphs:
            runner.record(config.slots)
        return cls(runner, Text(directory), config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._engine.stop()

    @property
    def load(self) -> EngineLoad:
        """The engine's, after the latest step."""
        return self._engine.load

    def submit(
        self,
        prompt: tuple[int, ...],
        tokens: int,
        *,
        tier: str = "",
        tenant: str | None = None,
        sampling: Sampling = GREEDY,
        watch: Callable[[], None] | None = None,
    ) -> Stream:
        """Begins a request that ends by its length; unless a tenant is named it finds no prefix of others."""
        owner = f"tenant {next(self._tenants)}" if tenant is None else tenant
        stream = Stream()
        stream.watch = watch
        submission = Submission(Job.GENERATE, prompt, tokens, sampling, tier=tier, tenant=owner)
        stream.number = self._engine.submit(submission, stream.take)
        return stream

    def cancel(self, streams: Many[Stream]) -> None:
        """Ends what has not ended, and waits for that."""
        for stream in streams:
            self._engine.cancel(stream.number)
        for stream in streams:
            stream.wait()

    def rate(self, requests: Many[Request], sampling: Callable[[int], Sampling] = lambda place: GREEDY) -> float:
        """Answer tokens per second of requests that come at once, prompts included in the time."""
        began = time.perf_counter()
        streams = [self.submit(prompt, tokens, sampling=sampling(i)) for i, (prompt, tokens) in enumerate(requests)]
        for stream in streams:
            stream.wait()
        took = time.perf_counter() - began
        assert [len(stream.ids) for stream in streams] == [tokens for _, tokens in requests]
        return sum(tokens for _, tokens in requests) / took

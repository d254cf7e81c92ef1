"""The engine on a GPU, its kernels in the loop: prompts in chunks, decoding beside them, drafts and prefixes found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiermesh.bench.engine_served import ON_CPU, Served, uniform
from tiermesh.cloud.engine import EngineConfig
from tiermesh.cloud.runner import Placement
from tiermesh.common.types import Sampling
from tiermesh.models import starter

CONFIG = EngineConfig(slots=6, step_tokens=96)


def answers(directory: Path, placement: Placement, temperature: float) -> list[list[int]]:
    requests = uniform(12, (3, 200), (8, 32), seed=5)
    with Served.model(directory, CONFIG, 2048, placement) as served:
        streams = [
            served.submit(prompt, tokens, sampling=Sampling(temperature=temperature, seed=i), tenant="one")
            for i, (prompt, tokens) in enumerate(requests)
        ]
        for stream in streams:
            stream.wait()
    return [stream.ids for stream in streams]


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_the_cpu(device: torch.device, temperature: float) -> None:
    """In float32, where neither rounds enough to turn a choice."""
    model = starter() / "cloud"
    got = answers(model, Placement(device, torch.float32), temperature)
    assert got == answers(model, ON_CPU, temperature)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_serves(device: torch.device, dtype: str) -> None:
    """Rounding turns some choices; most first ids stay."""
    model = starter() / "cloud"
    got = answers(model, Placement.of(device.type, dtype), 0.0)
    expected = answers(model, ON_CPU, 0.0)
    assert [len(ids) for ids in got] == [len(ids) for ids in expected]
    assert sum(a[0] == b[0] for a, b in zip(got, expected, strict=True)) >= 9

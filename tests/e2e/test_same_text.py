"""Same seed, same text, whatever way a request takes; and a comparison that does notice another text."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tiermesh.bench.prompts import heldout
from tiermesh.bench.same_text import NEAR_TIE, Report, Run, check, make_runs

KEY = "demo-key"


def checked(runs: list[Run], mesh: dict[str, Any], router: str | None = None) -> Report:
    router = router or mesh["router"]
    return asyncio.run(check(runs, worker=mesh["cloud"], router=router, edge=mesh["edge"], key=KEY))


def test_every_way_gives_the_workers_own_text(mesh: dict[str, Any]) -> None:
    prompts = heldout("command")[:4] + heldout("code")[:4]
    report = checked(make_runs(prompts, 16, seed=7), mesh)
    assert all(parting.margin < NEAR_TIE for parting in report.partings), report.partings
    assert report.parted_runs <= 1


def test_another_seed_is_noticed(mesh: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what the router is asked has its seed changed on the way."""
    from tiermesh import AsyncClient

    plain = AsyncClient.generate

    async def reseeded(self: AsyncClient, prompt: Any, **options: Any) -> Any:
        if self.address == mesh["router"]:
            options["seed"] ^= 1
        return await plain(self, prompt, **options)

    monkeypatch.setattr(AsyncClient, "generate", reseeded)
    runs = [replace(run, temperature=0.8) for run in make_runs(heldout("code")[:3], 3, seed=7)]
    report = checked(runs, mesh)
    assert report.parted_runs == 3
    assert {parting.way for parting in report.partings} == {"router"}

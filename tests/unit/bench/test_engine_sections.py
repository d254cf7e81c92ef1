"""What `bench engine` stands on: the drafts' script, how claims are judged, and an engine's streams."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiermesh.bench.engine import SECTIONS
from tiermesh.bench.engine_claims import Claim, Setting
from tiermesh.bench.engine_drafts import Edit, edits, passes_per_token
from tiermesh.bench.engine_served import Served, uniform
from tiermesh.bench.engine_waits import prefix
from tiermesh.cloud.engine import EngineConfig
from tiermesh.common.text import Text
from tiermesh.training.random_model import write_random_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"))


def test_a_copied_file_takes_few_passes_and_one_with_nothing_in_common_takes_one_a_token(model: Path) -> None:
    text = Text(model)
    (edit,) = edits(1)
    copied, same = passes_per_token(text, Edit(edit.before, edit.before))
    assert same
    assert copied < 0.2
    letters = "".join(chr(ord("a") + i) for i in range(26))
    apart, same = passes_per_token(text, Edit("0123456789", letters))
    assert same
    assert apart == 1


def test_edits_change_a_file_and_leave_most_of_it() -> None:
    for edit in edits(5):
        before, after = edit.before.splitlines(), edit.after.splitlines()
        assert before != after
        assert len(set(before) & set(after)) > len(set(before)) / 2
    assert edits(5) == edits(5)


def test_streams_end_by_their_length_and_their_ids_have_times_in_order(model: Path) -> None:
    requests = uniform(3, (5, 20), (4, 9))
    with Served.model(model, EngineConfig(slots=2), 512) as ours:
        assert ours.rate(requests) > 0
        stream = ours.submit(*requests[0])
        stream.wait()
        assert len(stream.ids) == len(stream.times) == requests[0][1]
        assert stream.submitted < stream.times[0]
        assert stream.times == sorted(stream.times)


def test_a_prefix_is_found_by_its_tenant_and_by_nobody_in_the_runs_without_hits(model: Path) -> None:
    reused, cost = prefix(Setting(model, threads=1, pairs=5, quick=True))
    assert reused.facts["pairs"] == 10
    assert cost.facts["cached_prompt_tokens"] == 0


@pytest.mark.parametrize(("value", "at_least", "met"), [(2, True, True), (0.5, True, False), (0.5, False, True)])
def test_a_claim_is_met_on_the_right_side_of_its_aim(value: float, at_least: bool, met: bool) -> None:
    claim = Claim("x", value, 1, at_least)
    assert claim.met is met
    assert (claim.margin >= 1) is met
    assert claim.data()["met"] is met


def test_every_section_can_be_asked_for_by_name() -> None:
    assert list(SECTIONS) == ["single", "mixed", "long_prompt", "prefix", "tiers", "drafts", "overhead"]

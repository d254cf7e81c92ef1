"""The demo, whole and cut short."""

from __future__ import annotations

import json
from typing import Any


def test_every_way_of_answering_occurs(shell: Any) -> None:
    command = shell.start("demo", "--json")
    out, err = command.process.communicate(timeout=120)
    assert command.process.returncode == 0, err
    told = json.loads(out.splitlines()[-1])
    first, again = told["answers"][:12], told["answers"][12:]
    assert told["ok"]
    assert any(answer["alone"] for answer in first)
    assert any(answer["asks"] for answer in first)
    assert any(answer["handed_over"] for answer in first)
    assert all(answer["cached"] for answer in again)
    assert [answer["text"] for answer in first] == [answer["text"] for answer in again]
    assert all(count > 0 for count in told["tokens_by_origin"].values())
    assert command.children() == []


def test_ctrl_c_in_the_middle_stops_everything(shell: Any, until: Any) -> None:
    command = shell.start("demo")
    until(lambda: len(command.children()) == 3)
    assert command.interrupt() == 130
    assert command.children() == []

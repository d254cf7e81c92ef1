"""The page on faults names only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROWS = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")][2:]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_each_fault_has_a_test() -> None:
    assert len(ROWS) >= 15
    for row in ROWS:
        assert row.count("|") == 5, f"a cell too many or too few: {row}"
        assert NAMED.search(row.split("|")[4]), f"no test shows it: {row}"


@pytest.mark.parametrize(("path", "name"), sorted({pair for row in ROWS for pair in NAMED.findall(row)}))
def test_a_named_test_exists(path: str, name: str) -> None:
    module = ast.parse((ROOT / path).read_text())
    tests = {node.name for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in tests
    assert name.startswith("test_")

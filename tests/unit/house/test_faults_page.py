"""The pages on faults and on security name only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LEAST = {"faults.md": 30, "security.md": 15}


def rows_of(page: str) -> list[tuple[str, int]]:
    """Rows of the tables whose last column is `test`, each with the cells that its table has."""
    rows: list[tuple[str, int]] = []
    cells = 0
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if not line.startswith("| "):
            cells = 0
        elif line.endswith("| test |"):
            cells = line.count("|") - 1
        elif cells and not line.startswith("| ---"):
            rows.append((line, cells))
    return rows


@pytest.mark.parametrize("page", LEAST)
def test_each_row_has_a_test(page: str) -> None:
    rows = rows_of(page)
    assert len(rows) >= LEAST[page]
    for row, cells in rows:
        assert row.count("|") == cells + 1, f"a cell too many or too few: {row}"
        assert NAMED.search(row.split("|")[cells]), f"no test shows it: {row}"


@pytest.mark.parametrize(
    ("path", "name"), sorted({pair for page in LEAST for row, _ in rows_of(page) for pair in NAMED.findall(row)})
)
def test_a_named_test_exists(path: str, name: str) -> None:
    module = ast.parse((ROOT / path).read_text())
    tests = {node.name for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in tests
    assert name.startswith("test_")

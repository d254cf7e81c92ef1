"""Runs a benchmark by name: `python -P -m tiermesh.bench NAME …`; without a name, lists them."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from tiermesh.common.errors import TiermeshError


def benchmarks() -> dict[str, str]:
    """Name and first line of each: the modules of this folder with a function `main(arguments)`."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        module = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" and node.args.args for node in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def run(arguments: Sequence[str]) -> int:
    """The exit status of the named benchmark."""
    known = benchmarks()
    if not arguments or arguments[0] not in known:
        stream = sys.stderr if arguments else sys.stdout
        print("\n".join(f"{name:<12} {line}" for name, line in known.items()), file=stream)
        return 2 if arguments else 0
    try:
        importlib.import_module(f"tiermesh.bench.{arguments[0]}").main(arguments[1:])
    except TiermeshError as error:
        print(f"bench: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

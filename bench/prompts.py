"""The held-out prompts of the starter pair."""

from __future__ import annotations

import json

from ..models import starter


def heldout(kind: str | None = None) -> list[str]:
    """Prompts of one kind ("command", "code") or of both, in the file's order."""
    lines = (starter() / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    records = map(json.loads, lines)
    return [record["prompt"] for record in records if kind is None or record["kind"] == kind]

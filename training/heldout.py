"""Prompts that training never saw: commands of held-out templates and pairs, and openings of source files.

Those kept in the repository are openings of tiermesh's own source, which is no part of the corpus.

`python -P -m tiermesh.training.heldout` writes models/starter/heldout.jsonl.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..models import starter
from .commands import generate
from .corpus import Source

_OWN_FOLDERS = ("common", "cache", "cloud", "edge", "router", "sdk")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of heldout.jsonl; `level` and `truth` belong to commands, `package` to code."""

    kind: str
    prompt: str
    level: int | None = None
    truth: str | None = None
    package: str | None = None

    def to_json(self) -> dict[str, object]:
        """The fields that its kind has."""
        fields = {"kind": self.kind, "level": self.level, "prompt": self.prompt, "truth": self.truth}
        fields["package"] = self.package
        return {name: value for name, value in fields.items() if value is not None}


def command_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` distinct held-out commands, the levels in turn; prompts end with a newline."""
    prompts: list[Prompt] = []
    streams = {level: generate("heldout", seed, (level,)) for level in (1, 2, 3)}
    seen: set[str] = set()
    while len(prompts) < count:
        command = next(streams[len(prompts) % 3 + 1])
        if command.text not in seen:
            seen.add(command.text)
            prompts.append(Prompt("command", command.text + "\n", command.level, command.truth))
    return prompts


def code_prompts(sources: tuple[Source, ...], count: int, seed: int) -> list[Prompt]:
    """`count` openings of top-level functions and classes, a few lines each, chosen by hash over all held-out files."""
    blocks = sorted(
        (hashlib.sha256(f"{seed}{text}".encode()).hexdigest(), text, source.package)
        for source in sources
        for text in _openings(source.text)
    )
    if len(blocks) < count:
        raise ValueError(f"{count} code prompts asked, {len(blocks)} can be had")
    return [Prompt("code", text, package=package) for _, text, package in blocks[:count]]


def _openings(text: str) -> Iterator[str]:
    """From each top-level def or class, four to eight lines, ending with a line break."""
    lines = text.splitlines(keepends=True)
    for index, line in enumerate(lines):
        opening = "".join(lines[index : index + 4 + index % 5])
        if line.startswith(("def ", "class ")) and 120 <= len(opening) <= 400:
            yield opening


def own_sources() -> tuple[Source, ...]:
    """The source of this project, from the checkout."""
    root = Path(__file__).parent.parent
    paths = sorted(path for folder in _OWN_FOLDERS for path in (root / folder).glob("*.py"))
    return tuple(Source("tiermesh", path.read_text(encoding="utf-8")) for path in paths)


def write_heldout(out: Path) -> None:
    """300 commands and 60 code prompts, one JSON object per line."""
    prompts = command_prompts(300, 2026) + code_prompts(own_sources(), 60, 2026)
    out.write_text("".join(json.dumps(prompt.to_json()) + "\n" for prompt in prompts))


def read_heldout(path: Path) -> list[Prompt]:
    """The prompts of a heldout.jsonl."""
    return [Prompt(**json.loads(line)) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    write_heldout(starter() / "heldout.jsonl")

"""The section of `bench engine` on drafts by looking back: passes on edits of code, the price of looking in vain."""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from ..cloud.engine import EngineConfig
from ..cloud.meter import EngineLoad
from ..cloud.request import Choice
from ..cloud.runner import ModelRunner, Outcome
from ..cloud.scheduler import Work
from ..common.text import Text
from ..common.types import Sampling
from .engine_claims import Claim, Setting
from .engine_served import ON_CPU, Served, uniform
from .kit import paired_ratio
from .tree import ROOT

_FOLDERS = ("cloud", "router", "edge", "cache", "common")
_NAME = re.compile(r"\b[a-z_][a-z0-9_]{4,}\b")


def drafts(given: Setting) -> list[Claim]:
    """Forward passes per token when code comes again with small changes, and the time lost where nothing does."""
    return [_edited(given), *(_in_vain(given, streams) for streams in (1, 16))]


@dataclass(frozen=True, slots=True)
class Edit:
    """A file before and after."""

    before: str
    after: str


def edits(count: int, seed: int = 0) -> list[Edit]:
    """Files of this repository, each with a name changed throughout and three lines deleted, doubled or new."""
    rng = random.Random(seed)
    files = sorted(path for folder in _FOLDERS for path in (ROOT / folder).glob("*.py"))
    texts = [text for path in files if 1500 < len(text := path.read_text(encoding="utf-8")) < 9000]
    return [_edit(text, rng) for text in rng.sample(texts, count)]


def _edit(text: str, rng: random.Random) -> Edit:
    name = rng.choice(sorted(set(_NAME.findall(text))))
    lines = re.sub(rf"\b{name}\b", f"{rng.choice(('new', 'old', 'first', 'inner'))}_{name}", text).splitlines(True)
    for change in (_delete, _insert, _shift):
        change(lines, rng.randrange(len(lines)), rng)
    return Edit(text, "".join(lines))


def _delete(lines: list[str], at: int, rng: random.Random) -> None:
    del lines[at]


def _insert(lines: list[str], at: int, rng: random.Random) -> None:
    lines.insert(at, f"    checked_{rng.randrange(100)} = {rng.randrange(1000)}\n")


def _shift(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at] = f"    if enabled_{rng.randrange(100)}:\n    {lines[at]}"


class Script:
    """A runner without a model, for one sequence at a time: it chooses the text that it was given, id by id.

    So what is measured is the drafter and the path of its drafts, not whether any model would have written this text.
    """

    vocab_size, max_context, pool_blocks, block_size = 4096, 1 << 16, 1 << 12, 16

    def __init__(self) -> None:
        self.text: tuple[int, ...] = ()
        """Prompt and answer."""
        self.passes = 0
        """Those that chose anything."""

    def run(self, plan: Many[Work]) -> Outcome:
        """See `Runner`."""
        (work,) = plan
        end = work.sequence.computed + work.count
        self.passes += bool(work.wanted)
        # Behind a draft that reaches past the text there is nothing to choose; it never stands that far.
        following = [self.text[at] if at < len(self.text) else 0 for at in range(end - work.wanted + 1, end + 1)]
        return Outcome([[Choice(token) for token in following]], [True])

    def scrub(self, blocks: Iterable[int]) -> None:
        """Nothing is kept."""


def passes_per_token(text: Text, edit: Edit) -> tuple[float, bool]:
    """Of the engine when the text before is the prompt and the one after the answer; and whether that came out."""
    prompt, answer = (tuple(text.encode_prompt(side)) for side in (edit.before, edit.after))
    script = Script()
    script.text = (*prompt, *answer)
    with Served(script, text, EngineConfig(slots=1, step_tokens=512)) as ours:
        stream = ours.submit(prompt, len(answer))
        stream.wait()
    return script.passes / len(answer), tuple(stream.ids) == answer


def _edited(given: Setting) -> Claim:
    text = Text(given.model)
    found = [passes_per_token(text, edit) for edit in edits(given.few(40, 3))]
    passes = [each for each, _ in found]
    facts = {
        "spread": [min(passes), max(passes)],
        "edits": len(passes),
        "texts_that_differ": sum(not same for _, same in found),
        "text_is_given": "the runner chooses the edited file whatever is drafted; no model wrote it",
    }
    return Claim("code edits, the text given: passes per token, median", statistics.median(passes), 0.6, False, facts)


def _in_vain(given: Setting, streams: int) -> Claim:
    """Seconds with drafts ÷ without, on text sampled at temperature 1, which rarely says three ids twice."""
    requests = uniform(streams, (given.few(64, 16),) * 2, (given.few(192 if streams == 1 else 64, 16),) * 2, seed=3)
    # One model in one process, and an engine of its own for each run: between two processes, threads and memory differ
    # by more than what is measured.
    text, runner = Text(given.model), ModelRunner.load(given.model, ON_CPU, streams * 512)
    loads: dict[bool, EngineLoad] = {}

    def seconds_per_token(ngram_drafts: bool) -> float:
        with Served(runner, text, EngineConfig(slots=streams, ngram_drafts=ngram_drafts)) as ours:
            rate = ours.rate(requests, _sampled)
            loads[ngram_drafts] = ours.load
        return 1 / rate

    cost = paired_ratio(
        lambda: seconds_per_token(True), lambda: seconds_per_token(False), pairs=given.few(8, 1) * given.pairs
    )
    load = loads[True]
    tokens = load.rows["decode"] + load.rows["draft"]
    facts = {"drafted": load.drafted, "accepted": load.accepted, "decoded_rows": tokens, "temperature": 1.0}
    what = f"nothing to copy, {streams} stream{'s' * (streams > 1)}: time with drafts ÷ without"
    return Claim.of(what, cost, 1.03, at_least=False, **facts)


def _sampled(place: int) -> Sampling:
    return Sampling(temperature=1.0, seed=place)

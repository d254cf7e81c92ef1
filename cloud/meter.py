"""How busy an engine is, and what it has done since its start."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

from .drafts import DraftCounts
from .request import Sequence
from .runner import Outcome
from .scheduler import Scheduler, Work

_RECENT = 0.1
"""Weight of the latest value in running means."""

PARTS = ("schedule", "prepare", "forward", "sample", "publish")
"""Of a step, in order: deciding who runs, making tensors, the model, choosing, and telling whoever waits."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A snapshot."""

    slots: int
    running: int = 0
    waiting: int = 0
    kv_free: float = 1.0
    """Share of the KV pool that nobody who runs holds."""
    kv_named: float = 0.0
    """Share of the KV pool that later prompts can find, held or not."""
    step_s: float = 0.0
    """Mean duration of the recent steps."""
    answer_s: float = 1.0
    """Mean time that the recent sequences ran."""
    prefix_hit: float = 0.0
    """Mean share of the recent prompts that was found computed."""
    steps: int = 0
    choices: int = 0
    """Rows whose logits were wanted."""
    tokens: int = 0
    """Rows run, prompts and drafts included."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """`tokens` by kind: prefill, decode, draft."""
    prompts: Mapping[str, int] = field(default_factory=dict)
    """Tokens of prompts that began, by whether they were cached or computed."""
    drafted: int = 0
    """Ids that were drafted by looking back."""
    accepted: int = 0
    """Of these: what the model would have chosen too."""
    preemptions: Mapping[str, int] = field(default_factory=dict)
    """By what was short: slots, kv, growth."""
    parts_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent in each of `PARTS`."""


class Meter:
    """Counts on the engine's thread; `load` may be read from any."""

    def __init__(self, slots: int) -> None:
        self.load = EngineLoad(slots)
        self.drafts = DraftCounts()
        """Counted by the drafters."""
        self._rows = {"prefill": 0, "decode": 0, "draft": 0}
        self._prompts = {"cached": 0, "computed": 0}
        self._parts_s = dict.fromkeys(PARTS, 0.0)

    def step(self, plan: Many[Work], outcome: Outcome, duration_s: float) -> None:
        """A pass was run; its results are not taken in yet."""
        for work in plan:
            self._rows["prefill"] += work.read
            self._rows["draft"] += work.drafted
            self._rows["decode"] += work.count - work.read - work.drafted
        self.spent(prepare=outcome.prepare_s, forward=outcome.forward_s, sample=outcome.sample_s)
        load = self.load
        self.load = replace(
            load,
            step_s=_mean(load.step_s or duration_s, duration_s),
            steps=load.steps + 1,
            choices=load.choices + sum(work.wanted for work in plan),
            tokens=load.tokens + sum(work.count for work in plan),
        )

    def spent(self, **parts_s: float) -> None:
        """Time went into parts of a step."""
        for part, seconds in parts_s.items():
            self._parts_s[part] += seconds

    def began(self, sequence: Sequence) -> None:
        """A sequence had its first step."""
        cached = sequence.cached_prompt_tokens
        self._prompts["cached"] += cached
        self._prompts["computed"] += sequence.prompt_length - cached
        share = cached / sequence.prompt_length
        self.load = replace(self.load, prefix_hit=_mean(self.load.prefix_hit, share))

    def ended(self, lasted_s: float) -> None:
        """A sequence that had run has ended."""
        self.load = replace(self.load, answer_s=_mean(self.load.answer_s, lasted_s))

    def look(self, scheduler: Scheduler) -> bool:
        """Takes a new snapshot; whether the numbers of running or waiting sequences changed."""
        before, pool = self.load, scheduler.pool
        self.load = replace(
            before,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_free=pool.free / pool.total,
            kv_named=pool.named / pool.total,
            rows=dict(self._rows),
            prompts=dict(self._prompts),
            drafted=self.drafts.drafted,
            accepted=self.drafts.accepted,
            preemptions=dict(scheduler.preemptions),
            parts_s=dict(self._parts_s),
        )
        return (before.running, before.waiting) != (self.load.running, self.load.waiting)


def _mean(mean: float, value: float) -> float:
    return mean + _RECENT * (value - mean)

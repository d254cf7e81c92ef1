"""A request as the engine takes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..common.types import Sampling
from .request import Job, Sequence


@dataclass(frozen=True, slots=True)
class Submission:
    """Lengths were checked against the engine's limits."""

    job: Job
    prompt: tuple[int, ...]
    """At least one id; for SCORE, prompt and answer as one."""
    max_tokens: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the answer, the model's own included."""
    logprobs: bool = False
    top_logprobs: int = 0
    deadline_s: float | None = None
    """Time left."""
    delivered_ids: tuple[int, ...] = ()
    """Answer ids that were given already."""
    delivered_bytes: int | None = None
    """UTF-8 bytes of their text that were shown; None: all that could be."""
    answer_start: int = 1
    """SCORE: index of the first answer token."""

    def sequence(self, number: int, now: float) -> Sequence:
        """The sequence at its beginning; `number` is its id and its place among the arrivals."""
        return Sequence(
            id=number,
            job=self.job,
            prompt_length=self.answer_start if self.job is Job.SCORE else len(self.prompt),
            tokens=[*self.prompt, *self.delivered_ids],
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            stop_ids=self.stop_ids,
            logprobs=self.logprobs or self.job is Job.SCORE,
            top_logprobs=self.top_logprobs,
            deadline=None if self.deadline_s is None else now + self.deadline_s,
            arrival=number,
        )

"""A request as the engine takes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..common.errors import InvalidRequest
from ..common.types import Sampling
from .prefix import Chain
from .request import Job, Sequence


@dataclass(frozen=True, slots=True)
class Submission:
    """What to do with which ids, for whom."""

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
    tier: str = ""
    """Empty is the usual one."""
    tenant: str = ""
    """Who finds again what was computed for whom; the tenant as the hop before verified it."""

    def check_fits(self, max_context: int, pool_tokens: int) -> None:
        """Raises InvalidRequest for what can never be served, however long it waits."""
        tokens = len(self.prompt) + (0 if self.job is Job.SCORE else self.max_tokens)
        for most, what in ((max_context, "the model's context"), (pool_tokens - 1, "this worker's KV pool")):
            if tokens > most:
                raise InvalidRequest.field(
                    "prompt",
                    f"{len(self.prompt)} prompt tokens and max_tokens {self.max_tokens} pass {what} of {most} tokens; "
                    "shorten the prompt or lower max_tokens",
                )

    def sequence(self, number: int, now: float, tier: int, tier_deadline_s: float, chain: Chain | None) -> Sequence:
        """The sequence at its beginning; `number` is its id and its place among the arrivals."""
        deadline = None if self.deadline_s is None else now + self.deadline_s
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
            deadline=deadline,
            arrival=number,
            tier=tier,
            due=now + tier_deadline_s if deadline is None else deadline,
            chain=chain,
        )

"""One sequence and its states.

    WAITING ──admit──▶ RUNNING ──ends──▶ FINISHED
       ▲  ▲              │  │
       │  └───preempt────┘  │
       │                 verdict
       │                    ▼
       └───────ask──────── IDLE      (a session between two asks; its KV stays until someone needs the room,
                                      and the session itself until its lease ends)

A session begins IDLE. When its ask doesn't come soon it waits and runs without one: it reads what it knows ahead, so
that the ask finds the KV there.

A sequence never has a prefill or a decode phase: it has known tokens, drafts, and a count of those whose KV is in the
pool. What a step runs is what lies behind that count. Only while it runs does it hold blocks; preempted or between two
asks it has a lease on them, and goes on from what is left of it. Rolling back a draft is lowering the count, and moves
no memory.

Planning a step, and whatever takes the sequence out of it, begins a new epoch; results of an older one are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from enum import Enum, auto

from ..common.types import Sampling, TopLogprobs
from .blocks import Lease
from .drafts import Drafter
from .prefix import Chain
from .tally import Tally


class State(Enum):
    """See the module's picture."""

    WAITING = auto()
    RUNNING = auto()
    IDLE = auto()
    FINISHED = auto()


class Job(Enum):
    """What a sequence is there for."""

    GENERATE = auto()
    VERIFY = auto()
    SCORE = auto()


@dataclass(frozen=True, slots=True)
class Choice:
    """What the model says behind one token."""

    token: int
    """Its own choice of the next id, under the request's sampling."""
    logprob: float = math.nan
    """Natural logarithm of the choice's probability under the raw logits; NaN unless asked for."""
    given_logprob: float = math.nan
    """The same of the id that follows in the sequence; NaN where none does."""
    top: TopLogprobs = ()
    """The most probable ids there, when asked for."""
    finite: bool = True
    """False when the logits were not: nothing else here means anything then."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one request and how far they are computed. Changed by the engine's thread alone."""

    id: int
    job: Job
    prompt_length: int
    tokens: list[int]
    """Prompt and answer as far as it is certain."""
    max_tokens: int
    """Answer tokens at most."""
    sampling: Sampling
    stop_ids: frozenset[int]
    """Ids that end the answer and are not part of it."""
    logprobs: bool = False
    """Whether choices are to have their log-probabilities."""
    top_logprobs: int = 0
    """How many of the most probable ids each choice is to have beside it."""
    deadline: float | None = None
    """On the engine's clock."""
    arrival: int = 0
    """Order of arrival; kept over preemptions."""
    tier: int = 0
    """Place of its tier among the tiers, 0 the highest."""
    due: float = math.inf
    """When it should be done, on the engine's clock: what orders it within its tier. Its deadline, or its tier's."""
    chain: Chain | None = None
    """Names of its full blocks; None keeps its blocks to itself."""
    wanted_from: int = 0
    """SCORE: choices are wanted behind this position and all later ones."""

    state: State = State.WAITING
    computed: int = 0
    """Tokens, drafts included, whose KV is in the pool."""
    blocks: list[int] = field(default_factory=list)
    """Held while it runs."""
    lease: Lease = field(default_factory=Lease)
    """What it held when it last ran."""
    published: int = 0
    """How many of `blocks` nobody will write to any more."""
    cached: int | None = None
    """Tokens whose KV others had left when it first ran; None until then."""
    epoch: int = 0
    preemptions: int = 0
    draft: list[int] = field(default_factory=list)
    """Ids to be verified. Of an ask, the first `alone` were given by the edge. GENERATE: our guess, for one step."""
    alone: int = 0
    asked: bool = False
    """VERIFY: whether an ask waits for its verdict."""
    choices: list[Choice] = field(default_factory=list)
    """Of the wanted positions run so far in this round."""
    tally: Tally | None = None
    """Made when penalties first ask for it."""
    drafter: Drafter | None = None
    """Made when it is first to draft."""
    last_used: float = 0.0
    """When an idle session was opened or last had an answer, on the engine's clock."""

    @property
    def total(self) -> int:
        """Tokens and drafts."""
        return len(self.tokens) + len(self.draft)

    @property
    def pending(self) -> int:
        """Tokens that are to be run before the sequence has its next choices, or has read all that it may ahead.

        The last certain token is left to the ask, whose first choice lies behind it.
        """
        ahead = self.job is Job.VERIFY and not self.asked
        return max(0, self.total - ahead - self.computed)

    @property
    def answer_length(self) -> int:
        """Answer ids that are certain."""
        return len(self.tokens) - self.prompt_length

    @property
    def rank(self) -> tuple[int, float, int]:
        """Who has the least goes first."""
        return self.tier, self.due, self.arrival

    @property
    def reading(self) -> bool:
        """Whether it has to run tokens whose choices nobody wants, or a whole text: what may come in chunks."""
        return self.computed < self.first_wanted or self.job is Job.SCORE

    @property
    def cached_prompt_tokens(self) -> int:
        """Prompt tokens that it did not have to compute."""
        return min(self.cached or 0, self.prompt_length)

    @property
    def longest(self) -> int:
        """Tokens that it may come to, the id that ends the text included."""
        if self.job is Job.SCORE:
            return self.total
        return max(self.total, self.prompt_length + self.max_tokens + 1)

    @property
    def first_wanted(self) -> int:
        """The first position behind which a choice is wanted."""
        return self.wanted_from if self.job is Job.SCORE else len(self.tokens) - 1

    def slice(self, start: int, stop: int) -> list[int]:
        """Tokens and drafts from position `start` up to `stop`."""
        certain = len(self.tokens)
        if stop <= certain:
            return self.tokens[start:stop]
        return self.tokens[start:] + self.draft[max(0, start - certain) : stop - certain]

    def ask(self, alone: Ids[int], draft: Ids[int]) -> None:
        """Ids to verify; those who read ahead just go on with them."""
        assert self.job is Job.VERIFY
        assert not self.asked
        self.draft = [*alone, *draft]
        self.alone = len(alone)
        self.asked = True
        self.epoch += 1

    def pause(self) -> None:
        """Leaves the step: choices of this round are computed again, our own guess is dropped."""
        self.epoch += 1
        self.choices.clear()
        self.computed = min(self.computed, self.first_wanted)
        if self.job is Job.GENERATE:
            self.draft.clear()

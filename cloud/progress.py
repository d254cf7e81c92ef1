"""What the choices of a step mean for a sequence: more answer, a verdict, scores, the end. Pure: no I/O, no tensors."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from ..common.detokenize import Detokenizer
from ..common.types import FinishReason, Timing, TopLogprobs
from .outputs import Ended, Output, Produced, Scored, Verified
from .request import Choice, Job, Sequence
from .scheduler import Work


@dataclass(slots=True)
class Stages:
    """When a sequence passed from one stage to the next, on the engine's clock."""

    submitted: float
    started: float | None = None
    """Its first step began."""
    answered: float | None = None
    """Its first choice was there."""
    computing_s: float = 0.0
    """Duration of the steps since the last ask."""

    def timings(self, now: float) -> tuple[Timing, ...]:
        """Queue, prefill and decode, as far as they were reached."""
        marks = [("queue", self.submitted), ("prefill", self.started), ("decode", self.answered)]
        reached = [(stage, at) for stage, at in marks if at is not None]
        ends = [at for _, at in reached[1:]] + [now]
        return tuple(Timing("cloud", stage, end - at) for (stage, at), end in zip(reached, ends, strict=True))


@dataclass(slots=True)
class Progress:
    """One sequence's way from choices to outputs."""

    sequence: Sequence
    detokenizer: Callable[[Ids[int]], Detokenizer]
    """Makes the text of the answer, as if the given answer ids had been shown."""
    text: Detokenizer
    stages: Stages
    hand_over: bool = False
    """After the verdict in the making, the sequence generates."""
    outputs: list[Output] = field(default_factory=list)
    told: int = field(init=False)
    """Answer ids that were told so far, what ends the answer included: where the next ones begin."""

    def __post_init__(self) -> None:
        self.told = self.sequence.answer_length

    def advance(self, work: Work, choices: Ids[Choice], now: float) -> list[Output]:
        """Takes what a step gave; the outputs, of which an `Ended` or `Scored` is the last."""
        sequence = self.sequence
        sequence.computed += work.count
        sequence.choices.extend(choices)
        if sequence.pending or (sequence.job is Job.VERIFY and not sequence.asked):
            return []
        if self.stages.answered is None:
            self.stages.answered = now
        self.outputs = []
        finish = {Job.GENERATE: self._generated, Job.VERIFY: self._verified, Job.SCORE: self._scored}[sequence.job]
        finish(now)
        return self.outputs

    def begin(self, now: float) -> list[Output]:
        """What is due before the first step: a resumed answer may be complete already, or owe text."""
        self.outputs = []
        if self.sequence.job is Job.GENERATE and self.sequence.answer_length:
            self._go_on((), now)
        return self.outputs

    def _generated(self, now: float) -> None:
        """The drafts that the model would have chosen too, and its own id behind them: as if one by one."""
        sequence = self.sequence
        stands, over = _standing(sequence.draft, sequence.choices, sequence.stop_ids)
        taken = sequence.choices[: stands + (not over)]
        over = over or taken[-1].token in sequence.stop_ids
        shown = taken[: len(taken) - over]
        if sequence.drafter is not None:
            sequence.drafter.saw(len(sequence.draft), stands, len(taken))
        sequence.draft.clear()
        sequence.choices.clear()
        sequence.tokens += [choice.token for choice in shown]
        ended = bool(shown) and self._go_on(shown, now)
        sequence.computed = min(sequence.computed, len(sequence.tokens) - 1)
        if over and not ended:
            self._end(FinishReason.STOP, now)

    def _go_on(self, choices: Ids[Choice], now: float) -> bool:
        """Shows chosen ids that are in the sequence already, and ends it if they end it; whether they did.

        Behind a stop string that ends among them, the rest is dropped.
        """
        ids = tuple(choice.token for choice in choices)
        text = self.text.push(ids)
        reason = None
        if self.text.stopped:
            reason = FinishReason.STOP
            unused = len(ids) - self.text.used
            ids, choices = ids[: self.text.used], choices[: self.text.used]
            del self.sequence.tokens[len(self.sequence.tokens) - unused :]
        elif self.sequence.answer_length >= self.sequence.max_tokens:
            reason = FinishReason.LENGTH
            text += self.text.finish()
        if ids or text:
            self.outputs.append(Produced(self.told, ids, text, *self._logprobs(choices)))
            self.told += len(ids)
        if reason:
            self._end(reason, now, flush=False)
        return reason is not None

    def _end(self, reason: FinishReason, now: float, *, flush: bool = True) -> None:
        rest = self.text.finish() if flush else ""
        if rest:
            self.outputs.append(Produced(self.told, (), rest))
        length = min(self.sequence.answer_length, self.sequence.max_tokens)
        self.outputs.append(Ended(reason, length, self.stages.timings(now), self.sequence.cached_prompt_tokens))

    def _verified(self, now: float) -> None:
        """The longest beginning of the draft that the model would have chosen itself, and its own id behind it."""
        sequence = self.sequence
        drafts, choices = sequence.draft[sequence.alone :], sequence.choices[sequence.alone :]
        stands, ended = _standing(drafts, choices, sequence.stop_ids)
        following = None if ended else choices[stands].token
        position = self.told + sequence.alone
        shown = choices[: stands + (following is not None)]
        self.told = position + len(shown)
        labels = tuple(choice.token for choice in sequence.choices[: sequence.alone])
        (logprobs, top), compute_s = self._logprobs(shown), self.stages.computing_s
        self.outputs.append(Verified(position, stands, following, labels, logprobs, compute_s, top))
        # The id that ends an answer is no part of it.
        sequence.tokens += sequence.draft[: sequence.alone + stands - ended]
        sequence.draft.clear()
        sequence.alone, sequence.asked = 0, False
        sequence.choices.clear()
        self.stages.computing_s = 0.0
        if self.hand_over:
            sequence.job = Job.GENERATE
            self._take_over(following, now)
        elif following is not None:
            sequence.tokens.append(following)
        sequence.computed = min(sequence.computed, len(sequence.tokens) - 1)

    def _take_over(self, following: int | None, now: float) -> None:
        """The edge shows the ids up to `following` by itself; the text goes on behind them.

        Behind the last id that the answer may have, nothing follows.
        """
        sequence = self.sequence
        full = sequence.answer_length >= sequence.max_tokens
        over = not full and (following is None or following in sequence.stop_ids)
        if following is not None and not (full or over):
            sequence.tokens.append(following)
        self.text = self.detokenizer(sequence.tokens[sequence.prompt_length :])
        if over:
            self._end(FinishReason.STOP, now)
        else:
            self._go_on((), now)

    def _logprobs(self, choices: Ids[Choice]) -> tuple[tuple[float, ...], tuple[TopLogprobs, ...]]:
        """Of choices that are shown, and the most probable ids beside them; each empty unless asked for."""
        sequence = self.sequence
        logprobs = tuple(choice.logprob for choice in choices) if sequence.logprobs else ()
        return logprobs, tuple(choice.top for choice in choices) if sequence.top_logprobs else ()

    def _scored(self, now: float) -> None:
        """n tokens have n − 1 log-probabilities, and choices from the answer's start on."""
        sequence = self.sequence
        answer = sequence.choices[sequence.prompt_length - 1 : -1]
        self.outputs.append(
            Scored(
                tuple(choice.given_logprob for choice in sequence.choices[:-1]),
                tuple(choice.token for choice in answer),
                tuple(choice.logprob for choice in answer),
                tuple(choice.top for choice in sequence.choices[:-1]) if sequence.top_logprobs else (),
            )
        )


def _standing(drafts: Ids[int], choices: Ids[Choice], stop_ids: frozenset[int]) -> tuple[int, bool]:
    """How many drafts the model would have chosen too, and whether the last of these ends the answer."""
    for i, draft in enumerate(drafts):
        if draft != choices[i].token:
            return i, False
        if draft in stop_ids:
            return i + 1, True
    return len(drafts), False

"""A whole answer, gathered from its events."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from tiermesh.common.types import (
    Event,
    Finished,
    FinishReason,
    Quality,
    Span,
    Started,
    Timing,
    Tokens,
    TopLogprobs,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What `generate` returns."""

    text: str
    token_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    """Who gave which run of tokens, in order; their lengths add up to the number of tokens."""
    usage: Usage
    timings: tuple[Timing, ...]
    """Seconds per hop and stage, as the hops measured them."""
    finish_reason: FinishReason
    request_id: str
    model: str
    tier: str
    """The tier really used."""
    quality: Quality
    """The quality really used."""
    logprobs: tuple[float, ...]
    """Natural logarithms, one per token, when asked for."""
    top_logprobs: tuple[TopLogprobs, ...]
    """The most probable ids at each token's place, when asked for."""
    ttft_s: float
    """Seconds from the call to its first token, as the client saw it; the whole time when there was none."""
    total_s: float
    """Seconds from the call to its end, as the client saw it."""


@dataclass(slots=True)
class Gatherer:
    """Takes events one by one and gives the answer at the end."""

    _began_s: float = field(default_factory=time.monotonic)
    _first_s: float | None = None
    _started: Started = field(default_factory=lambda: Started("", "", "", Quality.EXACT))
    _text: list[str] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)
    _logprobs: list[float] = field(default_factory=list)
    _top_logprobs: list[TopLogprobs] = field(default_factory=list)
    _spans: list[Span] = field(default_factory=list)

    def add(self, event: Event) -> Answer | None:
        """The answer when the event was the last one."""
        match event:
            case Started():
                self._started = event
            case Tokens():
                self._add_tokens(event)
            case Finished():
                return self._answer(event)
        return None

    def _add_tokens(self, tokens: Tokens) -> None:
        if self._first_s is None:
            self._first_s = time.monotonic()
        self._text.append(tokens.text)
        self._ids.extend(tokens.ids)
        self._logprobs.extend(tokens.logprobs)
        self._top_logprobs.extend(tokens.top_logprobs)
        if not tokens.ids:
            return
        last = self._spans[-1] if self._spans else None
        if last and (last.origin, last.degraded) == (tokens.origin, tokens.degraded):
            self._spans[-1] = replace(last, tokens=last.tokens + len(tokens.ids))
        else:
            self._spans.append(Span(tokens.origin, len(tokens.ids), tokens.degraded))

    def _answer(self, finished: Finished) -> Answer:
        now = time.monotonic()
        return Answer(
            text="".join(self._text),
            token_ids=tuple(self._ids),
            spans=tuple(self._spans),
            usage=finished.usage,
            timings=finished.timings,
            finish_reason=finished.reason,
            request_id=self._started.request_id,
            model=self._started.model,
            tier=self._started.tier,
            quality=self._started.quality,
            logprobs=tuple(self._logprobs),
            top_logprobs=tuple(self._top_logprobs),
            ttft_s=(self._first_s or now) - self._began_s,
            total_s=now - self._began_s,
        )

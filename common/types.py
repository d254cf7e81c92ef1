"""The plain types that all parts speak; `wire.py` converts them from and to proto."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal


class Quality(Enum):
    """How far an answer may differ from the cloud model's own; the order is from strict to loose."""

    EXACT = "exact"
    BOUNDED = "bounded"
    EDGE = "edge"

    @property
    def looseness(self) -> int:
        """0 for exact, 2 for edge."""
        return list(Quality).index(self)


class CacheControl(Enum):
    """What the result cache may do for one request."""

    USE = "use"
    BYPASS = "bypass"
    REFRESH = "refresh"


class Origin(Enum):
    """Who gave a token."""

    EDGE = "edge"
    CLOUD = "cloud"
    CACHE = "cache"


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | tuple[ChatMessage, ...] | tuple[int, ...]
"""Text, a conversation (oldest turn first), or token ids."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; in the order logit_bias, penalties, temperature, top_k, top_p, min_p."""

    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """In (0, 1]; 1 is off."""
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """In [0, 1); 0 is off."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or answer; 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted once for each token that the answer holds."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the answer holds the token."""
    seed: int | None = None
    """64 bits; None until the first hop draws one."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the raw logits of ids, before all else; (id, bias) by ascending id, each id once."""

    @property
    def greedy(self) -> bool:
        """Whether the noise plays no part."""
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Whether any penalty is on."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def adjusted(self) -> bool:
        """Whether a bias or a penalty changes the logits, so that the largest raw one need not win at T = 0."""
        return bool(self.logit_bias) or self.penalized


@dataclass(frozen=True, slots=True)
class Request:
    """One request for an answer, as it travels from hop to hop."""

    prompt: Prompt
    max_tokens: int
    model: str = ""
    """Empty means the default model."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    """How many of the most probable ids come with each token; needs `logprobs`."""
    tier: str = ""
    """Empty means the tenant's default."""
    deadline_s: float | None = None
    """Time left, in seconds, when the request was read; None means the tier's own."""
    quality: Quality | None = None
    """None means the tenant's own."""
    delta: float | None = None
    """Share of units that may differ; None means the tenant's own."""
    cache: CacheControl = CacheControl.USE
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of answer tokens with one origin."""

    origin: Origin
    tokens: int
    degraded: bool = False
    """True where the edge would have asked but could not."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took, in tokens and units."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    billed_tokens: int = 0
    asks: int = 0
    alone: int = 0
    handed_over: bool = False
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """Time spent in one stage of one hop."""

    hop: str
    stage: str
    duration_s: float


TopLogprobs = tuple[tuple[int, float], ...]
"""The most probable ids of one place, most probable first, with natural logarithms under the raw logits."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted."""

    request_id: str
    model: str
    tier: str
    """The tier really used."""
    quality: Quality
    """The quality really used."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """More of the answer."""

    ids: tuple[int, ...]
    text: str
    """What these ids add; may lag behind by what could still become a stop string or half a character."""
    origin: Origin
    logprobs: tuple[float, ...] = ()
    """Natural logarithms, one per id, when asked for."""
    degraded: bool = False
    top_logprobs: tuple[TopLogprobs, ...] = ()
    """One per id, when asked for."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    reason: FinishReason
    usage: Usage
    timings: tuple[Timing, ...] = ()


Event = Started | Tokens | Finished


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Asks for log-probabilities of given tokens and the model's own choices."""

    prompt: Prompt
    """Prompt and answer as one."""
    answer_start: int = 1
    """Index of the first answer token; choices are given from here on."""
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    tier: str = ""
    deadline_s: float | None = None
    top_logprobs: int = 0
    """How many of the most probable ids come with each place."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Answer to a ScoreRequest over n tokens."""

    token_ids: tuple[int, ...]
    """n ids."""
    logprobs: tuple[float, ...]
    """n − 1 natural logarithms: of each token but the first, given those before it."""
    choices: tuple[int, ...]
    """n − answer_start ids: what the model would have taken there."""
    choice_logprobs: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...] = ()
    """n − 1, of the same places as `logprobs`, when asked for."""


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 hex digests that tell whether two hops speak of the same model."""

    model: str = ""
    tokenizer: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model."""

    id: str
    digests: Digests
    max_context: int
    """Prompt and answer together, in tokens."""
    vocab_size: int

"""The frames of the relay as plain types. Up: edge → router → worker; down: the other way."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .errors import TiermeshError
from .types import Digests, FinishReason, ModelInfo, Origin, Quality, Request, Timing, TopLogprobs, Usage

PROTOCOL_VERSION = 2


class SessionMode(Enum):
    """What the answerer does after `Open`."""

    GENERATE = "generate"
    """Generates until the answer ends."""
    VERIFY = "verify"
    """Waits for asks."""


class CloseReason(Enum):
    """Why a session was closed from above."""

    DONE = "done"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of a stream."""

    name: str
    digests: Digests = field(default_factory=Digests)
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Open:
    """Begins a session, or resumes it with a higher attempt."""

    session: int
    attempt: int
    request: Request
    """With tier, seed, quality and request id filled in."""
    mode: SessionMode
    tenant: str = ""
    delivered_ids: tuple[int, ...] = ()
    """Answer ids given already; the answerer goes on after them."""
    delivered_bytes: int = 0
    """UTF-8 bytes of their text that were shown."""
    deadline_left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A unit as a draft, verified in one pass."""

    session: int
    attempt: int
    position: int
    """Answer index of the first of alone_ids: how many answer ids the answerer already has."""
    draft_ids: tuple[int, ...]
    """To be verified, after alone_ids; may end with an end-of-text id."""
    alone_ids: tuple[int, ...] = ()
    """Given by the edge alone since its last visit."""
    hand_over: bool = False
    """After the verdict the answerer goes on by itself until the answer ends."""


@dataclass(frozen=True, slots=True)
class Close:
    """Ends a session from above."""

    session: int
    attempt: int
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What an edge node answered, so that the router's limits see it, and what became of what it showed alone."""

    request_id: str
    tenant: str
    tier: str
    prompt_tokens: int = 0
    edge_tokens: int = 0
    cloud_tokens: int = 0
    cache_tokens: int = 0
    alone: int = 0
    asks: int = 0
    handed_over: bool = False
    alone_tokens: int = 0
    """Shown without asking, under the bound; an id that ended the answer counts."""
    labelled_tokens: int = 0
    """Shown alone, now or earlier, of which the cloud has now said what it would have taken."""
    wrong_tokens: int = 0
    """Of labelled_tokens: it would have taken others."""
    audits: int = 0
    """Audits of the answer that have ended. A report with any is no request, and bills nothing."""
    audits_lost: int = 0
    """Of audits: without labels."""
    audit_tokens: int = 0
    """Of prompts and answers, read by the cloud for audits."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answers `Hello`; sent again whenever what is served changes."""

    name: str
    models: tuple[ModelInfo, ...] = ()
    """Empty while no worker is ready."""
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """A latency tier, as an edge node needs it."""

    name: str
    ttft_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """A tenant that an edge node may serve."""

    name: str
    key_hashes: tuple[str, ...]
    """Each "hmac-sha256:" and 64 hex digits, under the policy's salt."""
    tiers: tuple[str, ...]
    """The first is the default."""
    quality: Quality = Quality.BOUNDED
    delta: float = 0.05
    degraded_allowed: bool = False
    cache_exact: bool = True
    cache_ttl_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What an edge node may do; replaces the policy before it."""

    tenants: tuple[TenantPolicy, ...]
    tiers: tuple[TierPolicy, ...]
    valid_s: float
    """How long the node may act on it without hearing from the router."""
    salt: bytes
    """Of the key hashes; 16 bytes, this node's alone."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The session waits or runs."""

    session: int
    attempt: int
    queue_place: int = 0
    """Requests before it; 0 when it runs."""
    tier: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class RelayTokens:
    """More of the answer."""

    session: int
    attempt: int
    position: int
    """Answer index of the first id."""
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()
    origin: Origin = Origin.CLOUD
    top_logprobs: tuple[TopLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answers an `Ask`."""

    session: int
    attempt: int
    position: int
    """Answer index of the first drafted id."""
    stands: int
    """How many of the drafted ids stand."""
    next_id: int | None
    """The model's own id after what stands; None when the draft's end-of-text id stands."""
    choices: tuple[int, ...] = ()
    """The model's own choices where the edge gave ids alone."""
    logprobs: tuple[float, ...] = ()
    """Of what stands and of next_id, when asked for."""
    compute_s: float = 0.0
    top_logprobs: tuple[TopLogprobs, ...] = ()
    """Of the same places as `logprobs`."""


@dataclass(frozen=True, slots=True)
class RelayFinished:
    """The answerer ended the answer."""

    session: int
    attempt: int
    reason: FinishReason
    usage: Usage
    timings: tuple[Timing, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionError:
    """The session ended with an error; the stream lives on."""

    session: int
    attempt: int
    error: TiermeshError


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the answerer is; every 250 ms and on change."""

    slots: int
    running: int
    waiting: int
    kv_free: float
    """Share of the KV pool, 0 to 1."""
    step_s: float
    """Mean duration of the recent steps."""
    draining: bool = False
    prefix_hit: float = 0.0
    """Mean share of the recent prompts that was found computed, 0 to 1."""
    preemptions: int = 0
    """Sequences that gave way to others, since the start."""


UpFrame = Hello | Open | Ask | Close | UsageReport
SessionFrame = Accepted | RelayTokens | Verdict | RelayFinished | SessionError
DownFrame = SessionFrame | Welcome | Policy | Load

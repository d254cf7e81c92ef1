"""tiermesh: LLM inference in tiers. A small model at the edge answers what it can be trusted with, the cloud the rest.

from tiermesh import Client

with Client("127.0.0.1:7070", api_key="demo-key") as client:
    print(client.generate("dim the kitchen lights to 40 %\n", max_tokens=48).text)
"""

from tiermesh.common.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    Forbidden,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    NoWorkers,
    Overloaded,
    QuotaExceeded,
    RequestIdReused,
    RequestTooLarge,
    TiermeshError,
    Unauthenticated,
    Unavailable,
    Unsupported,
    Violation,
)
from tiermesh.common.explanation import Explanation
from tiermesh.common.types import (
    CacheControl,
    ChatMessage,
    Event,
    Finished,
    FinishReason,
    ModelInfo,
    Origin,
    Quality,
    Scores,
    Span,
    Started,
    Timing,
    Tokens,
    Usage,
)

from .answer import Answer
from .blocking import Client
from .client import AsyncClient
from .retry import Retry

__all__ = [
    "Answer",
    "AsyncClient",
    "CacheControl",
    "Cancelled",
    "ChatMessage",
    "Client",
    "DeadlineExceeded",
    "Draining",
    "Event",
    "Explanation",
    "FinishReason",
    "Finished",
    "Forbidden",
    "InternalError",
    "InvalidRequest",
    "ModelInfo",
    "ModelNotFound",
    "NoWorkers",
    "Origin",
    "Overloaded",
    "Quality",
    "QuotaExceeded",
    "RequestIdReused",
    "RequestTooLarge",
    "Retry",
    "Scores",
    "Span",
    "Started",
    "TiermeshError",
    "Timing",
    "Tokens",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Usage",
    "Violation",
]

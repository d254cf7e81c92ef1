"""What would become of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import TiermeshError

Source = Literal["worker", "cache", "flight", ""]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict of a dry run."""

    admitted: bool
    error: TiermeshError | None = None
    """Why not, with the delay after which to try again; None when it would be taken in."""
    tier: str = ""
    """The tier it would be served in; empty when it is refused before that is known."""
    source: Source = ""
    """Who would answer: a worker, the cache, or an identical request under way; empty when refused."""
    place: int = 0
    """Waiting requests that would get a slot before it, if no other came."""
    starts_in_s: float | None = None
    """Seconds until it would start; None while nothing was measured that says so."""
    worker: str = ""
    """Where it would go now."""
    cost: float = 0.0
    """What it is thought to cost, in tokens."""
    service_s: float = 0.0
    """What it is thought to take from its start to the last token, in seconds."""
    steps: tuple[str, ...] = ()
    """What led there, in order."""

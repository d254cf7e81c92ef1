"""The names that one request has in Redis; `redis_scripts.py` says what lies under them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """Below one generation; see `Seal` for what the parts stand for."""

    prefix: str
    """`tm:{tenant}:{generation}:`"""
    id: str
    lane: str = ""

    @property
    def tail(self) -> str:
        """What lease, story and bells have in common."""
        return f"{self.id}:{self.lane}"

    @property
    def entry(self) -> str:
        """The answer."""
        return f"{self.prefix}e:{self.id}"

    @property
    def lease(self) -> str:
        """Who computes it."""
        return f"{self.prefix}l:{self.tail}"

    @property
    def story(self) -> str:
        """What the leader has told."""
        return f"{self.prefix}s:{self.tail}"

    @property
    def bells(self) -> str:
        """Who follows."""
        return f"{self.prefix}b:{self.tail}"

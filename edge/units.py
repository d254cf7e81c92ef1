"""A unit: what is trusted, asked or handed over as a whole. One line of the answer, or at most 16 tokens of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..common.types import TopLogprobs

UNIT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Unit:
    """What the edge model would say next; nobody has seen it."""

    ids: tuple[int, ...]
    """1 to 16; the last one may end the answer."""
    probabilities: tuple[float, ...]
    """One per id: how sure the edge model is that this is the id (see `Picker`)."""
    margins: tuple[float, ...]
    """One per id: the largest probability less the second."""
    entropies: tuple[float, ...]
    """One per id, in nats."""
    ends: bool
    """Whether the last id ends the answer."""
    logprobs: tuple[float, ...] = ()
    """Natural logarithms of the ids under the softmax of the raw logits, when the request wants them."""
    top_logprobs: tuple[TopLogprobs, ...] = ()
    """One per id: the most probable ids there; each empty unless the request wants them."""
    cut: bool = False
    """Whether drafting stopped before its end, since it will be asked about (see `drafting.Doubt`)."""


@dataclass(frozen=True, slots=True)
class Borders:
    """Where units end."""

    line_ends: frozenset[int]
    """Ids whose text holds a line break."""
    end_ids: frozenset[int]
    """Ids that end the answer."""

    def closes(self, ids: Sequence[int]) -> bool:
        """Whether these ids are a whole unit."""
        return len(ids) >= UNIT_TOKENS or ids[-1] in self.line_ends or ids[-1] in self.end_ids


def line_ends(token_bytes: Sequence[bytes]) -> frozenset[int]:
    """Ids whose text holds a line break, from the bytes of every id."""
    return frozenset(i for i, raw in enumerate(token_bytes) if b"\n" in raw)

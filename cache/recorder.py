"""The answer so far: what a computation has given, or what somebody who follows it has heard."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.types import FinishReason, Origin, Tokens, Usage
from .entry import Entry


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer that knows its place, so that a repeated or an overlapping one does no harm."""

    position: int
    """Answer index of the first id."""
    text_at: int
    """Bytes of text before this piece's."""
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()


class Gap(Exception):
    """A piece does not continue what was heard: something between is lost, or it is of another answer."""


class Recorder:
    """Collects the events of one answer."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._text = bytearray()
        self._logprobs: list[float] = []
        self._degraded = False

    @property
    def text_bytes(self) -> int:
        """Bytes of the text so far."""
        return len(self._text)

    @property
    def size_bytes(self) -> int:
        """What the answer so far takes up at most, encoded."""
        return len(self._text) + 4 * (len(self.ids) + len(self._logprobs))

    def add(self, tokens: Tokens) -> None:
        """More of the answer."""
        self.ids += tokens.ids
        self._text += tokens.text.encode()
        self._logprobs += tokens.logprobs
        self._degraded |= tokens.degraded

    def since(self, position: int, text_at: int) -> Piece:
        """All from a place on."""
        text = self._text[text_at:].decode()
        return Piece(position, text_at, tuple(self.ids[position:]), text, tuple(self._logprobs[position:]))

    def hear(self, piece: Piece) -> Tokens | None:
        """What a piece adds to the answer so far; None when nothing. Raises Gap, and then takes nothing of it."""
        known, shown = len(self.ids) - piece.position, self.text_bytes - piece.text_at
        text = piece.text.encode()
        if known < 0 or shown < 0:
            raise Gap
        common = min(known, len(piece.ids))
        if tuple(self.ids[piece.position : piece.position + common]) != piece.ids[:common]:
            raise Gap
        if not text.startswith(self._text[piece.text_at : piece.text_at + len(text)]):
            raise Gap
        if known >= len(piece.ids) and shown >= len(text):
            return None
        fresh = Tokens(piece.ids[known:], text[shown:].decode(), Origin.CLOUD, piece.logprobs[known:])
        self.add(fresh)
        return fresh

    def entry(self, reason: FinishReason, usage: Usage) -> Entry | None:
        """The answer, or None when it must not be kept."""
        if self._degraded or reason is FinishReason.CANCELLED:
            return None
        return Entry(tuple(self.ids), self._text.decode(), reason, usage, tuple(self._logprobs))

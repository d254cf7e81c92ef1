"""Entries and pieces as bytes.

    entry   = version, flags, 8 counts, ids, logprobs, text
    piece   = version, flags, 4 counts, ids, logprobs, text
    ending  = version, flags, 6 counts

Counts are LEB128; ids take two bytes each, or four where one needs them; logprobs are 32-bit floats; the lengths must
add up to the byte. A decoder raises Unreadable for whatever it can't read, and then the value is worth nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from ..common.types import FinishReason, Usage
from .entry import Entry
from .port import Ending
from .recorder import Piece
from .seal import Unreadable

VERSION = 1
MAX_BYTES = 1 << 20
"""Of one value; the longest answer of 4,096 tokens takes about 60 kB."""

_ENTRY, _PIECE, _ENDING = 0, 1, 2
_WIDE, _LOGPROBS, _HANDED_OVER = 1 << 2, 1 << 3, 1 << 4
_REASONS = (FinishReason.STOP, FinishReason.LENGTH)
"""The reasons of complete answers; an index into them is bit 5."""


def encode_entry(entry: Entry) -> bytes:
    """About 30 bytes, and for each token 2 and its text."""
    flags = _ENTRY | _flags(entry.ids, entry.logprobs) | _how(entry.reason, entry.usage)
    text = entry.text.encode()
    counts = (*_counts(entry.usage), len(entry.ids), len(text))
    return _packed(flags, counts, entry.ids, entry.logprobs, text)


def decode_entry(data: bytes) -> Entry:
    """The entry. Raises Unreadable."""
    flags, counts, at = _opened(data, _ENTRY, 8)
    ids, logprobs, text = _body(data, at, flags, counts[6], counts[7])
    reason, usage = _ended(flags, counts)
    return Entry(ids, text, reason, usage, logprobs)


def is_entry(data: bytes) -> bool:
    """Whether it says so; `decode_entry` finds out whether it is one."""
    return len(data) > 1 and data[1] & 3 == _ENTRY


def encode_piece(piece: Piece) -> bytes:
    """A part of an answer under way."""
    flags = _PIECE | _flags(piece.ids, piece.logprobs)
    text = piece.text.encode()
    counts = (piece.position, piece.text_at, len(piece.ids), len(text))
    return _packed(flags, counts, piece.ids, piece.logprobs, text)


def encode_ending(ending: Ending) -> bytes:
    """The last word of an answer."""
    return _packed(_ENDING | _how(ending.reason, ending.usage), _counts(ending.usage), (), (), b"")


def decode_told(data: bytes) -> Piece | Ending:
    """A piece or an ending. Raises Unreadable."""
    if len(data) > 1 and data[1] & 3 == _ENDING:
        flags, counts, at = _opened(data, _ENDING, 6)
        if at != len(data):
            raise Unreadable("an ending has no body")
        return Ending(*_ended(flags, counts))
    flags, counts, at = _opened(data, _PIECE, 4)
    ids, logprobs, text = _body(data, at, flags, counts[2], counts[3])
    return Piece(counts[0], counts[1], ids, text, logprobs)


def _packed(flags: int, counts: Iterable[int], ids: Sequence[int], logprobs: Sequence[float], text: bytes) -> bytes:
    head = bytearray((VERSION, flags))
    for count in counts:
        while count > 127:
            head.append(count & 127 | 128)
            count >>= 7
        head.append(count)
    width = "I" if flags & _WIDE else "H"
    numbers = struct.pack(f"<{len(ids)}{width}{len(logprobs)}f", *ids, *logprobs)
    return b"".join((head, numbers, text))


def _opened(data: bytes, kind: int, counts: int) -> tuple[int, list[int], int]:
    """Flags, counts, and where the body begins."""
    if not 2 <= len(data) <= MAX_BYTES or data[0] != VERSION or data[1] & 3 != kind:
        raise Unreadable("another version or kind")
    values, at = [], 2
    for _ in range(counts):
        value = shift = 0
        while True:
            if at == len(data) or shift > 35:
                raise Unreadable("cut short")
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        values.append(value)
    return data[1], values, at


def _body(data: bytes, at: int, flags: int, ids: int, text: int) -> tuple[tuple[int, ...], tuple[float, ...], str]:
    width = 4 if flags & _WIDE else 2
    logprobs_at = at + width * ids
    text_at = logprobs_at + (4 * ids if flags & _LOGPROBS else 0)
    if text_at + text != len(data):
        raise Unreadable("the lengths do not add up")
    numbers = struct.unpack(f"<{ids}{'I' if width == 4 else 'H'}", data[at:logprobs_at])
    logprobs = struct.unpack(f"<{(text_at - logprobs_at) // 4}f", data[logprobs_at:text_at])
    try:
        return numbers, logprobs, data[text_at:].decode()
    except UnicodeDecodeError as exc:
        raise Unreadable("the text is not UTF-8") from exc


def _flags(ids: Sequence[int], logprobs: Sequence[float]) -> int:
    if logprobs and len(logprobs) != len(ids):
        raise ValueError("there is one logprob per id, or none")
    return (_WIDE if max(ids, default=0) > 0xFFFF else 0) | (_LOGPROBS if logprobs else 0)


def _how(reason: FinishReason, usage: Usage) -> int:
    return _REASONS.index(reason) << 5 | (_HANDED_OVER if usage.handed_over else 0)


def _counts(usage: Usage) -> tuple[int, ...]:
    return (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_prompt_tokens,
        usage.billed_tokens,
        usage.asks,
        usage.alone,
    )


def _ended(flags: int, counts: Sequence[int]) -> tuple[FinishReason, Usage]:
    prompt, completion, cached_prompt, billed, asks, alone = counts[:6]
    usage = Usage(prompt, completion, cached_prompt, billed, asks, alone, handed_over=bool(flags & _HANDED_OVER))
    return _REASONS[flags >> 5 & 1], usage

"""Token ids → text, as they come.

Byte-level and SentencePiece vocabularies map every id to bytes of its own, so text is made by joining bytes: nothing is
decoded twice, the prompt is never looked at (a first delta can't hold any of it), and a character that several tokens
share waits in an incremental UTF-8 decoder until it is whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from .errors import ModelDirError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """The text of one answer, cut exactly before the first stop string.

    First is the one that ends first, the longest of those that end together: that does not depend on how the text
    was split into tokens. Held back is only the half of a character, and what could still become a stop string.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        stop: Sequence[str] = (),
        delivered_ids: Sequence[int] = (),
        delivered_bytes: int | None = None,
    ) -> None:
        """Begin after `delivered_ids`, of which `delivered_bytes` UTF-8 bytes were shown (None: all that may be)."""
        self._bytes = token_bytes
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._owed = ""
        self._skip = 0
        self.stopped = False
        """Whether a stop string was met; ids pushed after it are ignored."""
        self.used = 0
        """Ids of the last push up to and including the one that completed a stop string; all when none did."""
        text = self.push(delivered_ids).encode()
        if delivered_bytes is not None:
            self._owed = text[delivered_bytes:].decode(errors="ignore")
            self._skip = max(0, delivered_bytes - len(text))

    def push(self, ids: Sequence[int]) -> str:
        """The text that may be shown now that `ids` came; unknown ids have none."""
        parts = []
        self.used = 0
        for token in ids:
            if self.stopped:
                break
            self.used += 1
            raw = self._bytes[token] if 0 <= token < len(self._bytes) else b""
            parts.append(self._screen(self._decoder.decode(raw)))
        return self._unseen("".join(parts))

    def finish(self) -> str:
        """What was held back, now that nothing follows; half a character becomes U+FFFD."""
        if self.stopped:
            return self._unseen("")
        rest = self._screen(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return self._unseen(rest)

    def _screen(self, text: str) -> str:
        """Pass on what can't belong to a stop string."""
        if not self._stop or self.stopped:
            return text
        pending = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := pending.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return pending[: min(found)[1]]
        keep = _overlap(pending, self._stop)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def _unseen(self, text: str) -> str:
        """`text` without what was shown before this detokenizer began, after what was still owed then."""
        if self._owed:
            text, self._owed = self._owed + text, ""
        if self._skip and text:
            raw = text.encode()
            text, self._skip = raw[self._skip :].decode(errors="ignore"), max(0, self._skip - len(raw))
        return text


def _overlap(text: str, stops: Iterable[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of one of `stops`."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every id; special tokens have none. Raises ModelDirError for a decoder that is not per token."""
    kinds = set(_decoder_kinds(json.loads(tokenizer.to_str())["decoder"]))
    if "ByteLevel" in kinds:
        convert = _from_byte_level
    elif kinds & {"ByteFallback", "Metaspace"}:
        convert = _from_sentencepiece
    else:
        raise ModelDirError(f"tokenizer.json: its decoder {sorted(kinds)} is neither byte-level nor SentencePiece's")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        table[i] = b"" if i in special else convert(token)
    return table


def _decoder_kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    """Names of a decoder and of those in it."""
    if decoder is not None:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _decoder_kinds(part)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: a byte that Latin-1 prints stands for itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


_ALPHABET = _byte_alphabet()


def _from_byte_level(token: str) -> bytes:
    """A token with any other character was added as plain text."""
    if all(char in _ALPHABET for char in token):
        return bytes(_ALPHABET[char] for char in token)
    return token.encode()


def _from_sentencepiece(token: str) -> bytes:
    """A byte's own token, or text in which U+2581 stands for a space."""
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("\u2581", " ").encode()

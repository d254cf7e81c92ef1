"""Names for what KV blocks hold: a chain of SHA-256 over the tokens from the beginning, under a salt of the tenant.

A block's name is the hash of its parent's name and its own tokens; the first block's parent is the salt. So equal names
mean equal tokens from the first one on, for the same tenant. The whole digest is the key: no two prefixes ever share
one by chance, nor by design of whoever writes the prompts.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence as Ids
from hashlib import sha256
from struct import Struct


class Salts:
    """One salt per tenant, from a secret that lives as long as the process.

    A tenant finds what it asked before and nothing else, so timing tells nobody what others asked. Nobody outside can
    compute a name, so none can be aimed at.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def of(self, tenant: str) -> bytes:
        """32 bytes; the same for the same tenant."""
        return hmac.digest(self._secret, tenant.encode(), "sha256")


class Chain:
    """Names of the full blocks of one sequence, each hashed once: 2 µs for 16 tokens."""

    def __init__(self, salt: bytes, block_size: int) -> None:
        self._names: list[bytes] = []
        self._parent = salt
        self._size = block_size
        self._packed = Struct(f"<{block_size}I")

    def names(self, tokens: Ids[int], blocks: int) -> list[bytes]:
        """Of the first `blocks` blocks; `tokens` fill them, and begin as they did in every call before."""
        for start in range(len(self._names) * self._size, blocks * self._size, self._size):
            self._parent = sha256(self._parent + self._packed.pack(*tokens[start : start + self._size])).digest()
            self._names.append(self._parent)
        return self._names[:blocks]

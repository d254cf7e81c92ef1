"""API keys: made once, shown once, kept as hashes."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

_STORED = "sha256:"
HASH_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")
"""What a stored key looks like."""


def new_key() -> str:
    """A fresh key of 256 random bits; plain hashing is enough for it, since nobody can search that space."""
    return f"tm_{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """The stored form of a key: `sha256:` and 64 hex digits."""
    return _STORED + hashlib.sha256(key.encode()).hexdigest()


def salted_hash(salt: bytes, stored: str) -> str:
    """What an edge node knows of a key whose stored form is given: `hmac-sha256:` and 64 hex digits.

    With another salt it is another hash, so what one node keeps can't be matched against what others keep.
    """
    digest = bytes.fromhex(stored.removeprefix(_STORED))
    return "hmac-sha256:" + hmac.digest(salt, digest, "sha256").hex()

"""API keys: made once, shown once, kept as hashes."""

from __future__ import annotations

import hashlib
import re
import secrets

HASH_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")
"""What a stored key looks like."""


def new_key() -> str:
    """A fresh key of 256 random bits; plain hashing is enough for it, since nobody can search that space."""
    return f"tm_{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """The stored form of a key: `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()

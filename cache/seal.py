"""Names and MACs under the mesh's secret: who reads or writes the shared store without it learns and changes little.

HMAC-SHA256 (RFC 2104) throughout. Names tell neither a tenant nor a prompt, not even to one who guesses it right; a
value that was altered, or moved to another name, does not open.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from functools import lru_cache

from ..common.secret import Secret
from .keys import CacheKey

TAG_BYTES = 16
_NAME_BYTES = 15
"""120 bits: 20 characters of base64, without padding."""
_KNOWN = 1024
"""Names of tenants and models that are remembered."""


class Unreadable(ValueError):
    """Bytes that are not what was kept."""


class Seal:
    """One mesh's names and MACs."""

    def __init__(self, secret: Secret) -> None:
        # `hmac.digest` would let go of the interpreter each time (see `draws`); a keyed state to copy does not.
        self._naming = hmac.new(secret.derive(b"cache-names"), digestmod="sha256")
        self._sealing = hmac.new(secret.derive(b"cache-entries"), digestmod="sha256")
        # Few, and asked for at each call: a name takes 3 µs.
        self._known = lru_cache(_KNOWN)(self._name)

    def tenant(self, name: str) -> str:
        """What stands for a tenant."""
        return self._known(b"tenant", name)

    def model(self, digest: str) -> str:
        """What stands for a model."""
        return self._known(b"model", digest)

    def request(self, key: CacheKey) -> str:
        """What stands for a request, beside what stands for its tenant."""
        return self._name(b"request", key.digest)

    def close(self, name: str, value: bytes) -> bytes:
        """The value, bound to its name."""
        return self._tag(name, value) + value

    def open(self, name: str, sealed: bytes) -> bytes:
        """The value. Raises Unreadable when it isn't what was sealed under this name."""
        tag, value = sealed[:TAG_BYTES], sealed[TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(name, value)):
            raise Unreadable("the MAC does not verify")
        return value

    def _name(self, kind: bytes, name: str) -> str:
        mac = self._naming.copy()
        mac.update(kind + b"\0" + name.encode("utf-8", "surrogatepass"))
        return urlsafe_b64encode(mac.digest()[:_NAME_BYTES]).decode()

    def _tag(self, name: str, value: bytes) -> bytes:
        mac = self._sealing.copy()
        mac.update(name.encode() + b"\0" + value)
        return mac.digest()[:TAG_BYTES]

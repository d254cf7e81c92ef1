"""A mesh's secret: 32 random bytes in a file that its routers share. Edge nodes and workers never see it."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigError

SECRET_PATTERN = re.compile(r"[0-9a-fA-F]{64}")
"""The one line of a secret's file: 32 bytes in hex."""

_SALT_BYTES = 16
_LONGEST_FILE = 256
"""Bytes read of a file that should have 65."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Keys derivations; its bytes appear in no repr, log or error."""

    value: bytes = field(repr=False)

    @classmethod
    def random(cls) -> Secret:
        """A fresh one, of 256 random bits."""
        return cls(secrets.token_bytes(32))

    def policy_salt(self, node: str) -> bytes:
        """The 16 bytes that salt key hashes in an edge node's policy: HMAC-SHA256 as a PRF (RFC 2104), truncated.

        They differ from node to node, and whoever has one of them learns neither the secret nor another node's.
        """
        return hmac.digest(self.value, b"policy-salt" + node.encode(), "sha256")[:_SALT_BYTES]

    def derive(self, purpose: bytes) -> bytes:
        """A key of 32 bytes for one purpose: whoever has it learns neither the secret nor another purpose's key."""
        return hmac.digest(self.value, b"derive" + purpose, "sha256")


def write_secret(path: Path) -> None:
    """Makes a secret in a new file of mode 0600. Raises ConfigError when the file exists or can't be written."""
    try:
        with open(path, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(Secret.random().value.hex() + "\n")
    except FileExistsError as exc:
        raise ConfigError(
            f"{path} exists and stays as it is, since routers that have it must go on agreeing: copy it to the "
            "mesh's other routers, or name another file with --out"
        ) from exc
    except OSError as exc:
        raise ConfigError(f"can't make {path}: {exc.strerror}") from exc


def read_secret(path: Path) -> Secret:
    """Reads a file as `write_secret` makes it, of mode 0640 at most. Raises ValueError with what to do."""
    try:
        with path.open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(_LONGEST_FILE)
    except FileNotFoundError as exc:
        raise ValueError(
            f"there is no {path}: make it with `tiermesh keys init --out {path}`, or copy it from another router of "
            "this mesh"
        ) from exc
    except OSError as exc:
        raise ValueError(f"can't read {path}: {exc.strerror}") from exc
    if mode & 0o007:
        raise ValueError(f"{path} is open to every user of this machine (mode {mode & 0o777:04o}): chmod 600 {path}")
    line = content.decode("ascii", "replace").removesuffix("\n")
    if not SECRET_PATTERN.fullmatch(line):
        raise ValueError(f"{path} has no line of 64 hex digits and nothing else, as `tiermesh keys init` writes it")
    return Secret(bytes.fromhex(line))

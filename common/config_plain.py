"""Finds keys in plain in a configuration, comments included: it may hold their hashes alone."""

from __future__ import annotations

import re

_KEY = re.compile(r"tm_[A-Za-z0-9_-]{43}")
"""As `keys.new_key` makes them."""
_OWN = re.compile(r"""\b(node_key|worker_token)\s*:\s*["']?tm_[A-Za-z0-9_-]{43}""")
"""Credentials that a service shows to others, so that no hash would do."""


def plain_keys(text: str, source: str) -> list[str]:
    """What to do, for each line with a key that has no place there."""
    return [
        f"{source}:{number}: holds a key in plain: put its hash there, as `tiermesh keys new` prints it, give the key "
        "to its owner alone, and make a new one, since whoever read this file knows it"
        for number, line in enumerate(text.splitlines(), 1)
        if _KEY.search(_OWN.sub("", line))
    ]

"""Which workers have computed the beginning of a prompt, as far as this router sent it there. Bounded; a guess.

The router has no tokenizer: it counts blocks of characters, or of ids where the prompt is given as such. A block's key
covers all before it and the tenant, since workers share no prefix between tenants. A collision costs a poorer guess.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from ..common.types import ChatMessage, Prompt

_CHARS = 128
_IDS = 32
_BLOCKS = 64
"""Blocks of a prompt that are looked at: 8,192 characters."""
_HOLDERS = 4
"""Workers that are remembered for a block, newest last."""


def keys_of(tenant: str, prompt: Prompt) -> tuple[int, ...]:
    """One for each full block from the start; none for a short prompt."""
    text: str | tuple[int, ...]
    size = _CHARS
    if isinstance(prompt, str):
        text = prompt[: _BLOCKS * _CHARS]
    elif prompt and isinstance(prompt[0], ChatMessage):
        text = "\0".join(f"{m.role}\0{m.content}" for m in prompt if isinstance(m, ChatMessage))
    else:
        size, text = _IDS, tuple(i for i in prompt[: _BLOCKS * _IDS] if isinstance(i, int))
    keys: list[int] = []
    key = hash(tenant)
    for at in range(min(len(text) // size, _BLOCKS)):
        key = hash((key, text[at * size : (at + 1) * size]))
        keys.append(key)
    return tuple(keys)


class Prefixes:
    """The index."""

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        self._holders: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def known(self, keys: Sequence[int]) -> Mapping[str, float]:
        """The part of a prompt's blocks, from the start, that each worker had; those that had none are left out."""
        depth: dict[str, int] = {}
        for at, key in enumerate(keys):
            holders = self._holders.get(key)
            if not holders:
                break
            for address in holders:
                if depth.get(address, 0) == at:
                    depth[address] = at + 1
        return {address: count / len(keys) for address, count in depth.items()}

    def sent(self, keys: Sequence[int], address: str) -> None:
        """A prompt goes to a worker; what was not sent for longest is forgotten first."""
        for key in keys:
            holders = self._holders.pop(key, ())
            others = tuple(other for other in holders if other != address)
            self._holders[key] = (*others[1 - _HOLDERS :], address)
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)

    def forget(self, address: str) -> None:
        """A worker lost all that it had computed."""
        for key, holders in list(self._holders.items()):
            if address in holders:
                self._holders[key] = tuple(other for other in holders if other != address)

"""All accounts of a node, kept on disk so that neither a crash nor a lost file gives an allowance back.

What is on disk covers what may be shown before it is written anew: each account has a ceiling, and a unit above it is
asked about. A start takes everything between what was shown and the ceiling, and all that was pending, as forfeited.
Without a state directory nothing is kept: every start has fresh accounts with their whole allowance. With one, an
account that is not in the file begins at zero and earns its allowance by units that were asked about.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..common.telemetry import get_logger
from .drift import Standing, Watch
from .ledger import ALLOWANCE, Account, bound_class
from .tab import Tab
from .units import UNIT_TOKENS
from .unvisited import Unvisited

_log = get_logger()

_FILE = "ledger.json"
_FORMAT = 1

MAX_ACCOUNTS = 512
"""The one that was used least recently makes room, and begins at zero when it comes back. About 300 kB on disk."""

_LEAST_RESERVE, _MOST_RESERVE = UNIT_TOKENS, 4096
_RESERVED_SHARE = 0.25
"""A quarter of the room is reserved at a time: a crash forfeits no more, and a write pays for several units."""

_PROOF_STEP = 256
"""Withheld tokens after which progress towards a proof is worth a write."""

_RETRY_S = 5.0
"""Pause after a failed write."""


class Place(NamedTuple):
    """Whose account it is."""

    tenant: str
    edge: str
    """Digest of the edge model."""
    cloud: str
    """Digest of the cloud model."""
    delta: float


class Ledgers:
    """Finds accounts, and writes them down in time."""

    def __init__(self, state_dir: Path | None, edge: str) -> None:
        """`edge` is the digest of the node's own model."""
        self._path = None if state_dir is None else state_dir / _FILE
        self._edge = edge
        self._accounts: dict[Place, Account] = {}
        self._standings: dict[Place, Standing] = {}
        self._written: dict[Place, int] = {}
        """Withheld tokens of each account on disk."""
        self._cloud = ""
        self._starts_at = ALLOWANCE if state_dir is None else 0.0
        self._due = asyncio.Event()

    def restore(self) -> None:
        """Takes up the books that were kept; broken or missing ones are logged, and every account begins at zero."""
        if self._path is None:
            return
        try:
            self._cloud, self._accounts = _parse(self._path.read_bytes())
        except FileNotFoundError:
            _log.info("ledger_begun", path=str(self._path), allowance=0)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            _log.warning("ledger_unreadable", path=str(self._path), cause=repr(exc), allowance=0)
        self._standings = {place: account.watch.standing for place, account in self._accounts.items()}
        # What this start forfeits is on disk before anything is shown on the strength of it.
        self._due.set()

    def tab(self, tenant: str, cloud: str | None, delta: float) -> Tab:
        """An answer's tab; `cloud` is the digest of the pool's model, None while none was heard of since the start."""
        if cloud and cloud != self._cloud:
            self._cloud = cloud
            self._due.set()
        bound = bound_class(delta)
        if bound is None or not self._cloud:
            return Tab(None)
        place = Place(tenant, self._edge, self._cloud, bound)
        account = self._accounts.pop(place, None) or self._open(bound)
        self._accounts[place] = account  # the last one is the one used last
        self._standings.setdefault(place, account.watch.standing)
        return Tab(account, self._cloud, self._changes(place))

    def accounts(self) -> Iterator[tuple[Place, Account]]:
        """All of them, as they are now."""
        return iter(tuple(self._accounts.items()))

    async def run(self) -> None:
        """Writes whenever it is due, until cancelled; one failed write is told, and tried again."""
        told = False
        while self._path is not None:
            await self._due.wait()
            self._due.clear()
            content, ceilings = self._snapshot(reserve=True)
            try:
                await _written(self._path, content)
            except OSError as exc:
                if not told:
                    _log.warning("ledger_not_kept", path=str(self._path), cause=repr(exc))
                told = True
                self._due.set()
                await asyncio.sleep(_RETRY_S)
                continue
            told = False
            for account, ceiling in ceilings:
                account.ceiling = ceiling

    def close(self) -> None:
        """The last word: nothing is reserved any more."""
        if self._path is None:
            return
        try:
            _write(self._path, self._snapshot(reserve=False)[0])
        except OSError as exc:
            _log.warning("ledger_not_kept", path=str(self._path), cause=repr(exc))

    def _changes(self, place: Place) -> Callable[[Account], None]:
        """What is to be called after each entry in an account: writes it down when that is due."""

        def changed(account: Account) -> None:
            standing = account.watch.standing
            if standing is not self._standings.get(place):
                self._standings[place] = standing
                _tell(place, account)
                self._due.set()
            elif standing is Standing.GOOD:
                if account.ceiling - account.shown < max(UNIT_TOKENS, _reserve(account) / 2):
                    self._due.set()
            elif account.withheld - self._written.get(place, 0) >= _PROOF_STEP:
                self._due.set()

        return changed

    def _open(self, bound: float) -> Account:
        idle = (place for place, account in self._accounts.items() if not account.pending)
        if len(self._accounts) >= MAX_ACCOUNTS and (oldest := next(idle, None)):
            del self._accounts[oldest]
            self._standings.pop(oldest, None)
            self._starts_at = 0.0  # or going away and coming back would be worth an allowance
        return Account(bound, self._starts_at, ceiling=0 if self._path else float("inf"))

    def _snapshot(self, reserve: bool) -> tuple[bytes, list[tuple[Account, float]]]:
        """The file's content, and what each account may come to once it is on disk. Until then the lower one holds."""
        rows, ceilings = [], []
        for place, account in self._accounts.items():
            ceiling = account.shown
            if reserve and account.watch.standing is Standing.GOOD:
                ceiling += _reserve(account)
            account.ceiling = min(account.ceiling, ceiling)
            ceilings.append((account, float(ceiling)))
            rows.append([*place, asdict(account) | {"ceiling": ceiling}])
            self._written[place] = account.withheld
        return _sealed({"format": _FORMAT, "cloud": self._cloud, "accounts": rows}), ceilings


def _reserve(account: Account) -> int:
    return int(min(max(_RESERVED_SHARE * account.room, _LEAST_RESERVE), _MOST_RESERVE))


def _tell(place: Place, account: Account) -> None:
    facts = {"tenant": place.tenant, "delta": place.delta, "shown": account.shown, "wrong": account.wrong}
    standing = account.watch.standing
    if standing is Standing.GOOD:
        _log.info("edge_trusted", **facts, allowance=round(account.allowance, 1))
    else:
        _log.warning("edge_distrusted", cause=standing.value, **facts)


def _sealed(books: dict[str, Any]) -> bytes:
    body = json.dumps(books, default=lambda standing: standing.value)
    return f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode()


def _parse(content: bytes) -> tuple[str, dict[Place, Account]]:
    seal, _, body = content.partition(b"\n")
    if seal.decode() != hashlib.sha256(body).hexdigest():
        raise ValueError("the checksum does not fit")
    books = json.loads(body)
    if books["format"] != _FORMAT:
        raise ValueError(f"format {books['format']!r}")
    return str(books["cloud"]), {Place(*row[:4]): _restored(row[4]) for row in books["accounts"]}


def _restored(facts: dict[str, Any]) -> Account:
    """An account as it was written, less all that may have happened since."""
    told = facts.pop("watch")
    watch = Watch(**told | {"standing": Standing(told["standing"])})
    unvisited = Unvisited(**facts.pop("unvisited") | {"awaited": 0})
    account = Account(**facts, unvisited=unvisited)
    account.watch = watch
    account.forfeited += account.pending + int(account.ceiling) - account.shown
    account.pending, account.ceiling = 0, account.shown
    return account


async def _written(path: Path, content: bytes) -> None:
    """Writes in a thread. When cancelled it waits all the same: the last word of `close` must come later."""
    writing = asyncio.ensure_future(asyncio.to_thread(_write, path, content))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


def _write(path: Path, content: bytes) -> None:
    """Writes beside and renames, and waits for the disk: a crash or a power cut leaves old books or new ones."""
    beside = path.with_suffix(".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)

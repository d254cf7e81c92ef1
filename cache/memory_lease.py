"""Leases of a store in memory: their leaders live in this process, so a lease ends with its leader, not by time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..common.types import Tokens
from .entry import Entry
from .keys import CacheKey
from .port import Ending, Follower, Keeping, Lead, Observer
from .recorder import Recorder

Keep = Callable[[CacheKey, Entry, Keeping], None]


class _Run:
    """One computation: what it told, who leads it, who listens."""

    def __init__(self, name: tuple[CacheKey, str]) -> None:
        self.name = name
        self.told = Recorder()
        self.ending: Ending | None = None
        self.leader: MemoryLead | None = None
        self.listeners: set[asyncio.Event] = set()

    def wake(self) -> None:
        for listener in self.listeners:
            listener.set()


class Runs:
    """All computations under way, by key and lane."""

    def __init__(self, keep: Keep, observer: Observer) -> None:
        self.keep = keep
        self.observer = observer
        self._runs: dict[tuple[CacheKey, str], _Run] = {}

    def join(self, key: CacheKey, lane: str) -> MemoryLead | MemoryFollower:
        """The lead, or the one to follow."""
        run = self._runs.setdefault((key, lane), _Run((key, lane)))
        if run.leader is None and not run.told.ids:
            self.observer.leased("led")
            return self.lead(run)
        self.observer.leased("followed")
        return MemoryFollower(self, run)

    def lead(self, run: _Run) -> MemoryLead:
        """Puts a leader in the empty place."""
        run.leader = MemoryLead(self, run)
        return run.leader

    def over(self, run: _Run) -> None:
        """A run that has ended, or that nobody leads or hears."""
        if self.under_way(run):
            del self._runs[run.name]

    def under_way(self, run: _Run) -> bool:
        """Whether nobody purged it meanwhile."""
        return self._runs.get(run.name) is run

    def forget(self, within: Callable[[CacheKey], bool]) -> None:
        """What runs in a scope goes on for those who hear it, and is not kept."""
        self._runs = {name: run for name, run in self._runs.items() if not within(name[0])}


class MemoryLead(Lead):
    """See `Lead`."""

    def __init__(self, runs: Runs, run: _Run) -> None:
        self._runs = runs
        self._run = run

    def add(self, tokens: Tokens) -> None:
        """More of the answer."""
        if self._run.leader is self:
            self._run.told.add(tokens)
            self._run.wake()

    def finish(self, ending: Ending, keeping: Keeping) -> Awaitable[None]:
        """Keeps the answer and tells the ending."""
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        finished.set_result(None)
        run = self._run
        if run.leader is not self:
            return finished
        entry = run.told.entry(ending.reason, ending.usage)
        if entry is not None and self._runs.under_way(run):
            self._runs.keep(run.name[0], entry, keeping)
        run.ending, run.leader = ending, None
        self._runs.over(run)
        run.wake()
        return finished

    async def abandon(self) -> None:
        """A follower takes over; without one the run is over."""
        run = self._run
        if run.leader is not self:
            return
        run.leader = None
        self._runs.observer.leased("abandoned")
        if not run.listeners:
            self._runs.over(run)
        run.wake()


class MemoryFollower(Follower):
    """See `Follower`."""

    def __init__(self, runs: Runs, run: _Run) -> None:
        self._runs = runs
        self._run = run
        self._heard = Recorder()
        self._wake = asyncio.Event()
        run.listeners.add(self._wake)

    async def next(self) -> Tokens | Ending | MemoryLead:
        """What is new."""
        run, heard = self._run, self._heard
        while True:
            self._wake.clear()
            if (fresh := heard.hear(run.told.since(len(heard.ids), heard.text_bytes))) is not None:
                return fresh
            if run.ending is not None:
                return run.ending
            if run.leader is None:
                self._runs.observer.leased("taken_over")
                lead = self._runs.lead(run)
                await self.leave()
                return lead
            await self._wake.wait()

    async def leave(self) -> None:
        """Stops listening; the last one to leave a run without a leader ends it."""
        self._run.listeners.discard(self._wake)
        if self._run.leader is None and not self._run.listeners:
            self._runs.over(self._run)

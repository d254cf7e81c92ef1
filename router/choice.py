"""Which worker gets a request: the better of two drawn by chance, and of the one that knows most of its prompt. Pure.

Two drawn by chance come close to the least busy of all without every router sending to the same one ("The power of two
choices in randomized load balancing", Mitzenmacher 1996). A prefix that a worker has computed makes up for load up to a
bound, so one common beginning does not pull everything to one worker.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

AFFINITY = 0.5
"""A prompt known in full weighs as much as half a worker's places."""
_ROOM_PART = 0.5
"""A worker makes room for one job beyond its slots for each two of them. In simulated bursts at twice the capacity, 8
seeds, 99.76 % of the realtime requests attained their tier with a quarter of the slots, 99.82 with a half, at 0.2 %
more goodput. At a worker of 8 slots in the overload of `bench/schedule_onset.py` it was 99.8 and 99.9 %, and if it is
half as fast 96.1 and 96.9."""
_LEAST_KV = 0.25
"""Of its KV; with less free there is no room."""


class Candidate(Protocol):
    """What is known of a worker."""

    address: str
    in_flight: int

    @property
    def trial(self) -> bool:
        """Whether one request is to show that it is well again."""
        ...

    @property
    def limit(self) -> int:
        """Requests that it gets at once."""
        ...

    @property
    def room(self) -> int:
        """Requests of the highest tier beyond that, for which it has lower ones give way."""
        ...


C = TypeVar("C", bound=Candidate)


def room_of(slots: int, kv_free: float = 1.0) -> int:
    """For how many jobs beyond its slots a worker is to make room, with such a part of its KV free.

    Who gives way finds what it had computed while there is KV for as many more.
    """
    if not kv_free >= _LEAST_KV:  # so that NaN is no room
        return 0
    return max(1, int(slots * min(_ROOM_PART, kv_free)))


def choose(usable: Sequence[C], known: Mapping[str, float], draw: random.Random) -> C | None:
    """One with a place, while any has, else one with room; `known` says of how much of the prompt an address has
    computed, from 0 to 1."""
    free = [worker for worker in usable if worker.in_flight < worker.limit]
    free = free or [worker for worker in usable if worker.in_flight < worker.limit + worker.room] or list(usable)
    if not free:
        return None
    for worker in free:
        if worker.trial and not worker.in_flight:
            return worker
    drawn = list(free) if len(free) <= 2 else draw.sample(free, 2)
    if known:
        drawn.append(max(free, key=lambda worker: known.get(worker.address, 0.0)))
    return min(drawn, key=lambda worker: (_badness(worker, known), draw.random()))


def _badness(worker: Candidate, known: Mapping[str, float]) -> float:
    return (worker.in_flight + 1) / worker.limit - AFFINITY * known.get(worker.address, 0.0)

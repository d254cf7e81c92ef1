"""How long workers take, fitted online to what they did: TTFT ≈ a + b·uncached prompt, TPOT ≈ c + d·batch. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from .averages import DecayedLine

_FIRST_TTFT_S = 0.02
_FIRST_TPOT_S = 0.02
_MOST = 256
"""Workers that are remembered; more than any router has."""


@dataclass(slots=True)
class _Times:
    ttft_s: DecayedLine = field(default_factory=lambda: DecayedLine(_FIRST_TTFT_S))
    tpot_s: DecayedLine = field(default_factory=lambda: DecayedLine(_FIRST_TPOT_S))


class WorkerTimes:
    """One pair of lines for each worker, and one over all for those that are new."""

    def __init__(self) -> None:
        self._pool = _Times()
        self._workers: dict[str, _Times] = {}

    def timed(self, worker: str, uncached: float, ttft_s: float, batch: float, tpot_s: float | None) -> None:
        """An undisturbed answer: its time to the first token after `uncached` prompt tokens, and per further token
        (None: there was none) while the worker ran `batch` sequences."""
        own = self._workers.pop(worker, None) or _Times()
        self._workers[worker] = own
        if len(self._workers) > _MOST:
            del self._workers[next(iter(self._workers))]
        for times in (own, self._pool):
            times.ttft_s.add(uncached, ttft_s)
            if tpot_s is not None:
                times.tpot_s.add(batch, tpot_s)

    def ttft_s(self, uncached: float, worker: str | None = None) -> float:
        """Expected time from dispatch to the first token, at a worker or, without one, over all of them."""
        return self._of(worker).ttft_s.at(uncached)

    def tpot_s(self, batch: float, worker: str | None = None) -> float:
        """Expected time per output token where `batch` sequences run."""
        return self._of(worker).tpot_s.at(batch)

    def _of(self, worker: str | None) -> _Times:
        return self._workers.get(worker, self._pool) if worker else self._pool

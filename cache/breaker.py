"""When to stop asking a server that does not answer, and when to try it again. Pure: time comes as an argument."""

from __future__ import annotations

from enum import Enum

_FAILURES = 5
"""So many in a row open it: at 5 ms each, what one bad moment costs at most."""
_PAUSE_S = (0.25, 5.0)
"""How long nobody asks, first and at most; it doubles with each trial that fails."""


class State(Enum):
    """Closed lets calls through; open refuses them; half-open refuses them while one trial runs."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Counts failures in a row."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self._failures = 0
        self._pauses = 0
        self._until = 0.0

    @property
    def closed(self) -> bool:
        """Whether calls are made."""
        return self.state is State.CLOSED

    def succeeded(self) -> None:
        """A call came back in time."""
        self.state, self._failures, self._pauses = State.CLOSED, 0, 0

    def failed(self, now: float) -> None:
        """A call did not; enough in a row, or a single trial, open it."""
        self._failures += 1
        if self.state is State.HALF_OPEN or self._failures >= _FAILURES:
            self.trip(now)

    def trip(self, now: float) -> None:
        """Opens it: the connection is gone, there is nothing to count."""
        if self.state is State.OPEN:
            return
        self.state = State.OPEN
        self._until = now + min(_PAUSE_S[0] * 2**self._pauses, _PAUSE_S[1])
        self._pauses += 1

    def trial_in_s(self, now: float) -> float:
        """Seconds until a trial is due."""
        return max(0.0, self._until - now)

    def trial(self) -> None:
        """A trial begins; `succeeded` or `failed` ends it."""
        self.state = State.HALF_OPEN

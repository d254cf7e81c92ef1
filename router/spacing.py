"""How often a stream hears more: at once while the router has time for that, less often while it has little.

What a router does for a token it does once for all tokens that come together: queues, events, a message to the client.
So tokens of a stream wait for one another, up to `MOST_S`, where the thread works more than `_FULL` of the time. First
tokens and ends never wait. The rest of the thread's time is theirs, and that of new requests.
"""

from __future__ import annotations

MOST_S = 0.02
"""Fifty messages a second and stream: no reader of text sees the difference."""
_LEAST_S = 0.001
_PAUSE_S = 0.001
_FULL, _EASY = 0.6, 0.5
"""Shares of its time that the thread works: above the one gaps grow, below the other they shrink."""


class Spacing:
    """The gaps between messages. Pure."""

    def __init__(self) -> None:
        self.gap_s = 0.0
        """Between two messages of tokens of one stream."""

    @property
    def pause_s(self) -> float:
        """Between two messages to a worker. A tenth more requests come through with it while all of the thread works,
        and each waits half a millisecond longer."""
        return _PAUSE_S if self.gap_s else 0.0

    def worked(self, share: float) -> None:
        """So much of the last moment the thread has worked."""
        if share > _FULL:
            self.gap_s = min(MOST_S, max(_LEAST_S, 2 * self.gap_s))
        elif share < _EASY:
            self.gap_s = self.gap_s / 2 if self.gap_s > _LEAST_S else 0.0

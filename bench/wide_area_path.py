"""One direction of an emulated wide-area connection: what bytes wait for, as TCP shows it to an application. Pure.

Emulated: every segment of at most 1,460 bytes takes half a round trip. A lost one holds back all that follows it, since
the receiver reads in order, until it was sent again: when three later segments got through, as soon as their duplicate
acknowledgments told the sender (fast retransmit, RFC 5681 section 3.2), else after the retransmission timeout, which
doubles each time (RFC 6298 sections 2 and 5). The timeout is one round trip and 200 ms: here no round trip varies, and
Linux takes the term for their variance to be 200 ms at least (`TCP_RTO_MIN`). RFC 6298 itself asks for 1 s in all.

Not emulated: nothing is delayed or dropped in the kernel, which would take `tc netem` and its privileges. So no
congestion window shrinks, no rate is limited, nothing is reordered, acknowledgments are never lost, and connecting is
free. Tail loss probes (RFC 8985) are left out: they gain nothing for a single segment, and two round trips instead of
the timeout where two are in flight.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

SEGMENT_BYTES = 1460
"""Of Ethernet's 1,500, less the headers of IPv4 and TCP."""

_TELLING_DUPLICATES = 3
_RTO_MIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a connection is like."""

    rtt_s: float
    """There and back, nothing lost."""
    loss: float = 0.0
    """Probability that a segment, or its retransmission, is lost; below 1."""

    @property
    def rto_s(self) -> float:
        """Until a segment without an acknowledgment is sent again for the first time."""
        return self.rtt_s + _RTO_MIN_S


@dataclass(slots=True)
class _Segment:
    data: bytes
    sent_s: float
    arrives_s: float
    losses: int
    """How many times in a row it is lost; a second one is told by the timeout alone."""
    duplicates: int = 0
    """Later segments that arrived while it was missed."""


class OneWay:
    """Takes bytes at one end and gives them at the other; all times on one clock, in seconds."""

    def __init__(self, conditions: Conditions, rng: random.Random) -> None:
        self._conditions = conditions
        self._rng = rng
        self._segments: deque[_Segment] = deque()
        self.lost = 0
        """Segments lost so far, retransmissions among them."""

    def send(self, now: float, data: bytes) -> None:
        """Bytes leave; `now` never goes back."""
        for start in range(0, len(data), SEGMENT_BYTES):
            self._send(now, data[start : start + SEGMENT_BYTES])

    def next_s(self) -> float | None:
        """When bytes can be received next, as far as is known now; None when none are under way."""
        return self._segments[0].arrives_s if self._segments else None

    def receive(self, now: float) -> bytes:
        """All bytes that arrived and follow what was received before."""
        arrived = []
        while self._segments and self._segments[0].arrives_s <= now:
            arrived.append(self._segments.popleft().data)
        return b"".join(arrived)

    def _send(self, now: float, data: bytes) -> None:
        losses, conditions = 0, self._conditions
        while self._rng.random() < conditions.loss:
            losses += 1
        self.lost += losses
        waited_s = conditions.rto_s * (2**losses - 1)
        arrives_s = now + waited_s + conditions.rtt_s / 2
        if not losses:
            self._tell(now)
        self._segments.append(_Segment(data, now, arrives_s, losses))

    def _tell(self, now: float) -> None:
        """A segment gets through: those missed before it, and not yet sent again, hear of it."""
        for missed in self._segments:
            if missed.losses and now < missed.sent_s + self._conditions.rto_s:
                missed.duplicates += 1
                if missed.losses == 1 and missed.duplicates == _TELLING_DUPLICATES:
                    missed.arrives_s = min(missed.arrives_s, now + 1.5 * self._conditions.rtt_s)

"""Workers that told of themselves, beside those of the configuration. Pure.

Each stays for a lease that every word of it renews. A worker that was killed is given up by its broken stream within a
second; the lease only makes the router forget it, so that addresses which come and go don't add up.
"""

from __future__ import annotations

from ..common.config_schema import split_address
from ..common.errors import InvalidRequest, Overloaded

LEASE_S = 10.0
MOST = 256
"""Workers that can be announced at once."""
_AWAY_S = 3.0
_LONGEST = 255


class Announced:
    """The addresses, each with the end of its lease."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._asked = float("inf")

    @property
    def addresses(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(self._until)

    def heard(self, address: str, now: float) -> bool:
        """A worker is there; whether it is new. Raises InvalidRequest or Overloaded."""
        _check(address)
        new = address not in self._until
        if new and len(self._until) >= MOST:
            raise Overloaded(
                f"{MOST} workers have announced themselves, as many as may; try again", retry_after_s=LEASE_S
            )
        self._until[address] = now + LEASE_S
        return new

    def left(self, address: str) -> bool:
        """A worker leaves; whether it was known."""
        return self._until.pop(address, None) is not None

    def expired(self, now: float) -> tuple[str, ...]:
        """Those whose lease has ended; they are forgotten. To be asked every second.

        A router that did not run for a while has yet to hear what was said meanwhile, so that leases last longer by it.
        """
        away_s, self._asked = now - self._asked, now
        if away_s > _AWAY_S:
            self._until = {address: until + away_s for address, until in self._until.items()}
        over = tuple(address for address, until in self._until.items() if until <= now)
        for address in over:
            del self._until[address]
        return over


def _check(address: str) -> None:
    """Others see it in logs and in the status: it holds nothing that would end a line there."""
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise InvalidRequest.field("address", str(error)[:_LONGEST]) from error
    if len(address) > _LONGEST or not port or not all(c.isalnum() or c in ".-_:%" for c in host) or not host.isascii():
        raise InvalidRequest.field("address", "write host:port with a name or number that routers can reach")

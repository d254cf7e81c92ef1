"""When to try again, and after how long. Pure: the clock's time and the random numbers come in."""

from __future__ import annotations

from dataclasses import dataclass

from tiermesh.common.errors import TiermeshError, Unavailable


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with full jitter, for errors that another moment may mend."""

    attempts: int = 4
    """Calls in all, the first one included; 1 never tries again."""
    base_s: float = 0.1
    """Longest wait before the second call; it doubles from call to call."""
    cap_s: float = 2.0
    """Longest wait of all."""

    def wait_s(self, error: TiermeshError, failed: int, left_s: float | None, draw: float) -> float | None:
        """Seconds to wait after the `failed`-th call (from 1) ended in `error`; None when trying again makes no sense.

        `left_s` is the time to the deadline, `draw` a random number in [0, 1). Only UNAVAILABLE is tried again: it says
        that nobody worked on the request. A server that names a delay gets at least that.
        """
        if not isinstance(error, Unavailable) or failed >= self.attempts:
            return None
        wait = max(draw * min(self.cap_s, self.base_s * 2 ** (failed - 1)), error.retry_after_s or 0.0)
        return wait if left_s is None or wait < left_s else None

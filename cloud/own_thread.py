"""Work in torch beside the engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def on_own_thread(work: Callable[[], T]) -> T:
    """Runs it on a thread that then ends, and with it the thread's team of OpenMP.

    On a CPU torch computes on a team per calling thread. As long as another thread than the engine's has one there are
    more threads than cores, and libgomp lets no team spin for its next work: a step of the starter on two cores took
    7.0 ms behind a load on the main thread, and 3.3 ms without.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()

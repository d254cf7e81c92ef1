"""A peer under measurement in a process of its own.

torch computes on a team of OpenMP threads per calling thread. When two sides share a process, there are more threads of
teams than cores, libgomp then lets none of them spin for its next work, and both sides take up to twice as long.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from tiermesh.common.errors import TiermeshError


class Rated(Protocol):
    """What can be measured; if it is a context manager it is entered once."""

    def rate(self, *arguments: Any) -> float:
        """Its figure, such as tokens per second."""
        ...


class Apart:
    """Something rated, built and run in a child process with as many threads as this one. `with` ends the child."""

    def __init__(self, make: Callable[..., Rated], *arguments: Any) -> None:
        """`make(*arguments)` must be picklable."""
        spawned = multiprocessing.get_context("spawn")
        self._link, far = spawned.Pipe()
        threads = torch.get_num_threads()
        self._child = spawned.Process(target=_serve, args=(far, threads, make, arguments), daemon=True)
        self._child.start()
        far.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._link.close()
        self._child.join()

    def rate(self, *arguments: Any) -> float:
        """What the child's `rate` gives; TiermeshError when the child fails, which says why on its stderr."""
        try:
            self._link.send(arguments)
            return float(self._link.recv())
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise TiermeshError("a peer's process failed; what it said stands above") from error


def _serve(link: Connection, threads: int, make: Callable[..., Rated], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        rated = make(*arguments)
        if hasattr(rated, "__exit__"):
            stack.enter_context(rated)  # type: ignore[arg-type]
        while True:
            try:
                asked = link.recv()
            except EOFError:
                return
            link.send(rated.rate(*asked))

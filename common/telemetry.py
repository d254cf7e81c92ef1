"""Structured logs on stderr, and the HTTP port with metrics and health. Neither ever holds a prompt or a key."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from structlog.typing import EventDict

from .errors import ConfigError

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 5, 10, 30)
"""For histograms of TTFT and whole answers; the tiers' usual bounds (50, 200, 1000 ms) are among them."""

TPOT_BUCKETS_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1)
"""For histograms of the time per output token."""


_LONGEST_FIELD = 512
"""Characters of one field; a request id that is a megabyte long is not worth more."""


def setup_logging(service: str, level: str = "info") -> None:
    """One JSON object per line on stderr, other libraries' words too. Called once, by main."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            _without_messages,
            _bounded,
            structlog.processors.JSONRenderer(serializer=_line),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(handlers=[_Foreign()], level=logging.WARNING, force=True)


def _without_messages(_: object, __: str, event: EventDict) -> EventDict:
    """An exception as its types and places. What it says may quote what a client sent: a prompt, a key."""
    error = event.pop("exc_info", None)
    error = sys.exception() if error is True else error[1] if isinstance(error, tuple) else error
    chain: list[str] = []
    while isinstance(error, BaseException) and len(chain) < 8:
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        places = " < ".join(f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in reversed(frames))
        chain.append(f"{type(error).__module__}.{type(error).__qualname__} at {places}")
        error = error.__cause__ or error.__context__
    if chain:
        event["exception"] = chain
    return event


def _line(event: EventDict, **how: Any) -> str:
    """JSON in printable ASCII: no character of a field ends the line or talks to a terminal. JSON forgets DEL."""
    return json.dumps(event, **how).replace("\x7f", "\\u007f")


def _bounded(_: object, __: str, event: EventDict) -> EventDict:
    """No field is longer than a line that somebody reads."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _LONGEST_FIELD:
            event[key] = value[:_LONGEST_FIELD] + "…"
    return event


class _Foreign(logging.Handler):
    """What libraries log, as lines of ours: the first line of what they say, since asyncio goes on with what its tasks
    held, and their exceptions as ours.
    """

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage().partition("\n")[0]
        get_logger().log(record.levelno, "library", logger=record.name, detail=words, exc_info=record.exc_info)


def get_logger() -> structlog.stdlib.BoundLogger:
    """The logger; fields are keyword arguments."""
    return structlog.stdlib.get_logger()


def serve_metrics(
    listen: str, registry: CollectorRegistry, ready: Callable[[], bool]
) -> tuple[str, Callable[[], None]]:
    """Serves /metrics, /healthz and /readyz over HTTP in a thread.

    Returns the bound "host:port" and a function that closes the port. Raises ConfigError when it can't listen.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            if self.path == "/metrics":
                encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, content_type, encoder(registry))
            elif self.path == "/healthz":
                self._answer(200, "text/plain", b"ok\n")
            elif self.path == "/readyz":
                is_ready = ready()
                self._answer(200 if is_ready else 503, "text/plain", b"ready\n" if is_ready else b"not ready\n")
            else:
                self._answer(404, "text/plain", b"try /metrics, /healthz or /readyz\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Scrapes are not worth a line."""

    host, _, port = listen.rpartition(":")
    try:
        server = ThreadingHTTPServer((host, int(port)), Handler)
    except (OSError, OverflowError) as exc:
        raise ConfigError(f"can't serve metrics on {listen}: {exc}") from exc
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"{host}:{server.server_port}", close


def open_metrics(listen: str | None, registry: CollectorRegistry, ready: Callable[[], bool]) -> Callable[[], None]:
    """For mains: `serve_metrics` where the configuration asks for it, and a line `metrics host:port` on stdout.

    Returns what closes the port.
    """
    if listen is None:
        return lambda: None
    address, close = serve_metrics(listen, registry, ready)
    print(f"metrics {address}", flush=True)
    return close

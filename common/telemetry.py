"""Structured logs on stderr, and the HTTP port with metrics and health. Neither ever holds a prompt or a key."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from .errors import ConfigError

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 5, 10, 30)
"""For histograms of TTFT and whole answers; the tiers' usual bounds (50, 200, 1000 ms) are among them."""

TPOT_BUCKETS_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1)
"""For histograms of the time per output token."""


def setup_logging(service: str, level: str = "info") -> None:
    """One JSON object per line on stderr. Called once, by main."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=json.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)


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

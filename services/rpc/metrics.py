"""A separate HTTP listener for Prometheus, on its own threads: nothing that apps or calls do holds it up."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

log = logging.getLogger("appsupervisor.metrics")

MAX_SCRAPES = 4
"""Scrapes at the same time; more are answered 503."""

CLIENT_SECONDS = 10.0
"""How long a client may take to send its request, or to take a part of the answer."""


class Collector(Protocol):
    """Computes metrics when they are asked for. Called on the listener's threads."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of now."""
        ...


class MetricsListener:
    """Serves `/metrics`. Made in listening state: raises OSError when the address cannot be bound."""

    def __init__(self, host: str, port: int, *collectors: Collector, or_another: bool = False) -> None:
        """`or_another`: where the port is taken, any free one does. `port` is the one that it has."""
        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        # Described by nothing: a description would be a first scrape, before there is anything to tell.
        for collector in collectors:
            registry.register(_Undescribed(collector))
        handler = type("Handler", (_Handler,), {"registry": registry})
        server = type("Server", (_Server,), {"address_family": AF_INET6}) if ":" in host else _Server
        try:
            self._server = server((host, port), handler)
        except OSError as refused:
            if not or_another or refused.errno != errno.EADDRINUSE:
                # The programs have several listeners: which one could not be had must be told.
                raise OSError(f"cannot serve metrics on {host}:{port}: {refused.strerror}") from refused
            self._server = server((host, 0), handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="metrics", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """End the listener; a scrape under way is left to its thread. Blocks for a fraction of a second."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Undescribed:
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        return self._collector.collect()

    def describe(self) -> Iterable[Metric]:
        return ()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with one client, at the least level: most often it has gone away."""
        log.debug("a scrape failed", exc_info=True, extra={"action": "metrics.client_failed"})


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    server_version = "appsupervisor"
    sys_version = ""
    timeout = CLIENT_SECONDS
    _scrapes = threading.BoundedSemaphore(MAX_SCRAPES)

    def do_GET(self) -> None:
        """Answer `/metrics`."""
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, "text/plain", b"Only /metrics is here.\n")
        elif not self._scrapes.acquire(blocking=False):
            self._answer(503, "text/plain", b"Too many scrapes at the same time.\n")
        else:
            try:
                encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
                body = encoder(self.registry)
            except Exception:
                log.exception("metrics could not be computed", extra={"action": "metrics.failed"})
                self._answer(500, "text/plain", b"The metrics could not be computed.\n")
            else:
                self._answer(200, content_type, body)
            finally:
                self._scrapes.release()

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape is no event."""

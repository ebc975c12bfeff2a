"""What the listener bounds for every connection, and a gate for one instance."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_WAITING_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """Bounds of the listener. Times are seconds, kept to about a tenth of a second."""

    max_connections: int = 10_000
    """Open connections, WebSockets included, as far as the process may open descriptors. One more makes the
    oldest that has no request give way; where each has one it is answered 503 and closed."""
    peer_share: float = 0.5
    """Part of these that one peer (an IPv4 address, an IPv6 /64) may hold; a trusted proxy may hold all."""
    app_share: float = 0.5
    """Part of these that the requests and WebSockets of one app may hold."""
    max_unfinished_head_bytes: int = 32 * 1024 * 1024
    """Held of heads that are not complete, of all connections; beyond it the oldest of these give way."""
    max_target_bytes: int = 16 * 1024
    """Size of a request target; a longer one is answered 414."""
    max_header_bytes: int = 64 * 1024
    """Size of a request's header section; a larger one is answered 431."""
    max_headers: int = 100
    """Number of header lines; more are answered 431."""
    max_pipelined: int = 32
    """Requests that wait behind the one being served on the same connection; then it is closed."""
    header_timeout: float = 10.0
    """From a connection's start, or a request's first byte, to the end of its headers."""
    body_idle_timeout: float = 20.0
    """Silence within a request's body while the app takes it; then 408."""
    keep_alive_timeout: float = 75.0
    """Silence between two requests. Longer than clients and load balancers keep a connection (httpx 5 s, most
    balancers 60 s): who closes first knows that no request is on its way. Idle ones make room for others."""
    max_streams: int = 100
    """Requests at a time on one connection of HTTP/2; one more is refused untouched. Each counts as one more
    connection of its peer."""
    stream_idle_timeout: float = 60.0
    """For a connection of HTTP/2 without a request."""
    write_timeout: float = 20.0
    """For the client to take 64 KiB of what is buffered for it, or the rest; else the connection is cut."""
    half_close_timeout: float = 2.0
    """For the response to a client that has closed its sending side; then it counts as gone."""
    linger_timeout: float = 2.0
    """For reading off what a client still sends after it was refused, so that it sees the answer."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Bounds of one instance, as in `appsupervisor.runtime.v1.Limits`."""

    max_concurrent_requests: int = 64
    """Requests served at the same time; WebSockets are not counted."""
    max_queued_requests: int = 128
    """Requests and WebSocket handshakes that wait beyond those; while an app starts both numbers may wait."""
    request_timeout: float = 30.0
    """Seconds from the request's headers to the end of its response, waiting included."""
    max_request_body_bytes: int = 32 * 1024 * 1024
    """Size of one request's body."""
    max_websockets: int = 4096
    """WebSockets open at the same time."""
    max_websocket_message_bytes: int = 1024 * 1024
    """Size of one message from a client; a longer one ends its WebSocket with 1009."""
    websocket_compression: bool = False
    """Whether permessage-deflate is agreed to."""

    @property
    def max_waiting_websocket_bytes(self) -> int:
        """Bytes that all WebSockets hold of messages which the app has not taken yet; no more is read beyond
        them, but for a few KiB of each WebSocket that holds nothing."""
        return max(_LEAST_WAITING_BYTES, 2 * self.max_websocket_message_bytes)


DEFAULT_GATE_LIMITS = GateLimits()
DEFAULT_FRONT_LIMITS = FrontLimits()

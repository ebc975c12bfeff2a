"""The ASGI scope of a request whose head was checked, of either protocol, and the ends of its connection."""

from __future__ import annotations

from urllib.parse import unquote

from runtime_node.asgi import Scope
from runtime_node.http.forwarded import TrustedProxies
from runtime_node.http.request import Head


class Endpoints:
    """The two ends of a connection, and what the node tells an app of them. Addresses are `(host, port)`."""

    __slots__ = ("client", "forwarded", "server", "trusted")

    def __init__(
        self, server: tuple[str, int] | None, client: tuple[str, int] | None, *, trusted: bool
    ) -> None:
        self.server = server
        self.client = client
        self.trusted = trusted
        """The peer is a proxy whose word is taken."""
        self.forwarded = [(b"x-forwarded-proto", b"http")]
        if client is not None:
            self.forwarded.append((b"x-forwarded-for", client[0].encode("ascii")))


def http_scope(
    head: Head, version: str, target: tuple[bytes, bytes], ends: Endpoints, proxies: TrustedProxies
) -> Scope:
    """Return the scope; `target` is the path and the query as they came.

    The headers are the head's own list. They tell the client's address, by the peer's word if it is trusted.
    """
    raw_path, query = target
    if not head.forwarded:
        head.headers += ends.forwarded
    path = raw_path.decode("ascii")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": version,
        "server": ends.server,
        "client": ends.client,
        "scheme": "http",
        "method": head.method,
        "root_path": "",
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": head.headers,
        "state": {},
    }
    if head.forwarded:
        proxies.apply(scope)
    return scope

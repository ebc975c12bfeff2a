"""The environment of one WSGI call, from an ASGI scope: PEP 3333 and RFC 3875 §4.1."""

from __future__ import annotations

import io
import sys
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from runtime_node.asgi import Scope

_READ_AHEAD = 64 * 1024
# `Proxy` would become HTTP_PROXY, which programs that an app starts take for their own setting ("httpoxy").
_DROPPED = frozenset((b"proxy",))


class BodySource(Protocol):
    """Where the pieces of a request's body come from."""

    def read_body(self) -> tuple[bytes, bool]:
        """Wait for the next piece; return it and whether more follows."""
        ...


def build_environ(scope: Scope, source: BodySource) -> dict[str, Any]:
    """Return the environment for the request of `scope`, whose body comes from `source` as it is read."""
    root = scope.get("root_path", "")
    script_name = root.encode().decode("latin-1")
    path = _path(scope)
    server = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": script_name,
        "PATH_INFO": path[len(script_name) :] if path.startswith(script_name) else path,
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1] or 0),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BufferedReader(_Body(source), _READ_AHEAD),
        # It ends where the body does, with a Content-Length or without.
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    client = scope.get("client")
    if client is not None:
        environ["REMOTE_ADDR"] = client[0]
        environ["REMOTE_PORT"] = str(client[1])
    for name, value in scope["headers"]:
        # `X-A-B` and `X_A_B` are one key of the environment: a client could forge what a proxy set.
        if b"_" not in name and name not in _DROPPED:
            _add_header(environ, name, value)
    return environ


def _path(scope: Scope) -> str:
    # Percent-encoded bytes need not be UTF-8; `path` has lost those that are not.
    raw = scope.get("raw_path")
    if raw is None:
        return str(scope["path"]).encode().decode("latin-1")
    return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("latin-1")


def _add_header(environ: dict[str, Any], name: bytes, value: bytes) -> None:
    key = name.decode("latin-1").upper().replace("-", "_")
    if key not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
        key = "HTTP_" + key
    text = value.decode("latin-1")
    known = environ.get(key)
    if known is not None:
        text = f"{known}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
    environ[key] = text


class _Body(io.RawIOBase):
    """The request's body as a raw stream; the buffered reader around it gives what PEP 3333 asks for."""

    def __init__(self, source: BodySource) -> None:
        self._source = source
        self._piece = memoryview(b"")
        self._more = True

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` with what is next; return how many bytes, 0 at the end of the body."""
        while not self._piece and self._more:
            piece, self._more = self._source.read_body()
            self._piece = memoryview(piece)
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size

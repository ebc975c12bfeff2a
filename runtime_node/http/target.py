"""The request target of RFC 9112 §3.2, taken apart without decoding."""

from __future__ import annotations

import re

from runtime_node.http.problems import SERVER_WIDE_OPTIONS, RefusedError, malformed

# Visible ASCII without what RFC 3986 never allows and intermediaries read differently.
_FORBIDDEN = re.compile(rb'[^\x21-\x7e]|[#<>"\\^`{|}]')
_ABSOLUTE = re.compile(rb"https?://([^/?@]+)([/?].*)?", re.IGNORECASE | re.DOTALL)


Target = tuple[bytes, bytes, bytes | None]
"""A path and query as they came, and the authority where it is in absolute form."""


def parse_target(target: bytes, method: str) -> Target:
    """Take a request target apart. Raises RefusedError (400) for one that no origin server should be sent."""
    if _FORBIDDEN.search(target):
        raise RefusedError(malformed("The request target has characters that must be percent-encoded."))
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return path, query, None
    if target == b"*" and method == "OPTIONS":
        raise RefusedError(SERVER_WIDE_OPTIONS)
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise RefusedError(malformed("The request target is neither a path nor an http URL."))
    path, _, query = (match[2] or b"/").partition(b"?")
    return path or b"/", query, match[1]

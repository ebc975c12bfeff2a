"""An app's response on a stream: checked by the rules of HTTP/1.1, and written as fields."""

from __future__ import annotations

from collections.abc import Iterable

from runtime_node.http.response import NO_BODY_STATUSES, UNTIL_CLOSE, Response, rest_of_body

Fields = list[tuple[bytes, bytes]]

# Of one connection, or of a request alone (RFC 9113 §8.2.2); the rest of these the node says for itself.
_NOT_HERE = frozenset((b"proxy-connection", b"te"))
_OF_A_HEAD = frozenset((b":status", b"date", b"set-cookie", b"content-length"))


class StreamResponse(Response):
    """A response's head as fields. Nothing changes when a method raises."""

    __slots__ = ()

    def fields(
        self, body: bytes, more: bool, head_only: bool, date_line: bytes, *, tell_length: bool
    ) -> tuple[Fields, bytes]:
        """Return the head and what goes out of the first piece of the body; `tell_length` where it is all.

        Raises BadResponseError for a body that is not as long as its Content-Length.
        """
        length = self._content_length
        no_body = head_only or self.status in NO_BODY_STATUSES
        size = 0 if no_body else len(body)
        if length is None or self.status == 204:
            remaining = UNTIL_CLOSE if more and not no_body else 0
        else:
            remaining = rest_of_body(0 if no_body else length, size, more)
        # From here on nothing is refused.
        self._no_body, self._remaining = no_body, remaining
        found: Fields = [(b":status", b"%d" % self.status)]
        lines = iter(self._lines[1:])
        for begun, value, _ in zip(lines, lines, lines, strict=True):
            name = begun[:-2]
            if name not in _NOT_HERE:
                found.append((name, value.strip(b" \t")))
        if length is None and tell_length and not no_body:
            length = size
        if length is not None and self.status != 204:
            found.append((b"content-length", b"%d" % length))
        if not self._date:
            found.append((b"date", date_line[6:-2]))
        self._lines = []
        return found, b"" if no_body else body


def checked_trailers(
    headers: Iterable[tuple[bytes, bytes]], base_domain: str, *, relayed: bool = False
) -> Fields:
    """Return an app's trailers, without what only a head may say; those `relayed` may be of a node. Raises
    BadResponseError."""
    response = StreamResponse(200, headers, base_domain, relayed=relayed)
    found, _ = response.fields(b"", False, True, b"", tell_length=False)
    return [field for field in found if field[0] not in _OF_A_HEAD]

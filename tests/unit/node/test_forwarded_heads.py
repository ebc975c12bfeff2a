"""Heads of forwarded requests, as pure functions: also of what no strict reader would have let in."""

import pytest

from runtime_node.forwarding.heads import (
    UnsendableError,
    is_grpc_call,
    request_head,
    response_headers,
    was_forwarded,
)

HOST = (b"host", b"a.localhost")


def scope(*headers, method="GET", path=b"/", query=b""):
    return {"method": method, "raw_path": path, "query_string": query, "headers": [HOST, *headers]}


def test_a_head_is_written_anew_with_one_framing_and_the_name_of_its_node():
    head = request_head(
        scope((b"transfer-encoding", b"chunked"), (b"x-a", b"b"), method="POST", query=b"q"), b"n"
    )
    assert head.data == (
        b"POST /?q HTTP/1.1\r\nhost: a.localhost\r\nx-a: b\r\nx-appsupervisor-forwarded: n\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    assert (head.chunked, head.length, head.has_body) == (True, 0, True)
    head = request_head(scope((b"content-length", b"0"), method="POST"), b"n")
    assert (head.has_body, b"content-length: 0\r\n" in head.data) == (False, True)


def test_a_body_that_http_2_does_not_announce_is_framed_for_the_way():
    def framed(*headers, method="POST"):
        head = request_head({**scope(*headers, method=method), "http_version": "2"}, b"n")
        return head.chunked, head.length

    assert framed() == (True, 0)
    assert framed((b"content-length", b"5")) == (False, 5)
    assert framed(method="GET") == (False, 0)
    call = scope((b"content-type", b"application/grpc+proto"), method="POST")
    assert is_grpc_call({**call, "http_version": "2"})
    # As an edge sends it that makes trailers of headers: such a call can be forwarded.
    assert not is_grpc_call({**call, "http_version": "1.1"})


@pytest.mark.parametrize(
    "asked",
    [
        scope((b"content-length", b"5"), (b"transfer-encoding", b"chunked")),
        scope((b"x-a", b"b\r\nx-b: c")),
        scope((b"x-a", b"b\n c")),
        scope((b"x-a", b"\x00")),
        scope((b"x a", b"b")),
        scope((b"", b"b")),
        scope(path=b"/ HTTP/1.1\r\nx: y"),
        scope(query=b"a b"),
    ],
)
def test_what_another_server_could_read_otherwise_is_never_written(asked):
    with pytest.raises(UnsendableError):
        request_head(asked, b"n")


def test_a_handshake_has_a_key_of_its_own_and_no_extensions():
    theirs = [(b"sec-websocket-key", b"theirs"), (b"sec-websocket-extensions", b"permessage-deflate")]
    head = request_head(
        scope(*theirs, (b"sec-websocket-protocol", b"chat"), (b"upgrade", b"websocket")), b"n", b"k"
    )
    assert b"sec-websocket-key: k\r\n" in head.data
    assert b"sec-websocket-protocol: chat\r\n" in head.data
    assert b"theirs" not in head.data
    assert b"extensions" not in head.data
    assert head.data.count(b"upgrade: websocket") == 1


def test_a_request_that_was_forwarded_is_known_and_named_anew():
    asked = scope((b"x-appsupervisor-forwarded", b"before"))
    assert was_forwarded(asked)
    assert not was_forwarded(scope())
    assert b"before" not in request_head(asked, b"n").data


def test_of_a_response_what_is_of_one_hop_stays_here():
    headers = [(b"connection", b"x-own"), (b"x-own", b"1"), (b"keep-alive", b"5"), (b"content-length", b"3"),
               (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d")]  # fmt: skip
    kept = [(b"content-length", b"3"), (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d")]
    assert response_headers(headers) == kept

"""What passes on the wire of a forwarded request: no byte of it is read in two ways."""

import pytest

from tests.integration.http.other_node import RawNode, lines


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET",
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX-A: b\r\n folded: yes\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX-A: b\rX-B: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX-A: b\nContent-Length: 5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX-A: b\x00c\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: a.localhost\r\n\r\n",
    ],
)
async def test_what_two_servers_could_read_in_two_ways_is_forwarded_in_one_or_not(make_moved, request_bytes):
    heads = []

    async def app(scope, receive, send):
        heads.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    moved = await make_moved(app)
    answers = await moved.former.raw(request_bytes)
    assert len(answers) == 1
    if answers[0].status == 200:
        assert len(heads) == 1
        assert not {b"folded", b"x-b"} & set(heads[0])
    else:
        assert answers[0].status in (400, 501)
        assert heads == []


async def test_a_request_hidden_in_a_body_stays_a_body(moved):
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a.localhost\r\n\r\n"
    head = b"POST /real HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    [answer] = await moved.former.raw(head % len(hidden) + hidden)
    assert "path=/real" in lines(answer)
    assert moved.forwarder.forwarded == 1


async def test_what_connection_names_is_of_one_hop_but_not_what_others_rely_on(moved):
    answer = await moved.get("/", "Connection: X-Mine, Host, X-Forwarded-For", "X-Mine: yes", "Keep-Alive: 5",
                             "TE: trailers", "Proxy-Connection: keep-alive")  # fmt: skip
    seen = lines(answer)
    assert "header host=a.localhost" in seen
    assert any(line.startswith("header x-forwarded-for=") for line in seen)
    for name in ("x-mine", "keep-alive", "te", "proxy-connection"):
        assert not any(line.startswith(f"header {name}=") for line in seen)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            200,
            b"ok",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 502, None),
        (b"not HTTP at all\r\n\r\n", 502, None),
        (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 300_000 + b"\r\n\r\n", 502, None),
    ],
)
async def test_a_strange_response_is_taken_as_far_as_it_is_one(make_moved, answer, status, body):
    async with RawNode(answer) as target:
        moved = await make_moved(target=target)
        got = await moved.get()
        assert got.status == status
        if body is not None:
            assert got.body == body


async def test_a_response_that_nobody_asked_for_is_nobodys(make_moved):
    two = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2"
    async with RawNode(two, close=False) as target:
        moved = await make_moved(target=target)
        for _ in range(3):
            assert (await moved.get()).body in (b"1", b"")
        assert (await moved.get()).body != b"2"

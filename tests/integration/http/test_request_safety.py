"""What a hostile client can put on the wire, and that none of it reaches an app as something else."""

import asyncio
import json

import pytest

from runtime_node.http import FrontLimits

HOST = b"Host: a.localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SECOND = b"GET /second HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


def post(headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST /first HTTP/" + version + b"\r\n" + HOST + headers + b"\r\n" + body


AMBIGUOUS_FRAMING = {
    "length twice, equal": post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"),
    "length twice, different": post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"),
    "length list": post(b"Content-Length: 3, 3\r\n", b"abc"),
    "length signed": post(b"Content-Length: +3\r\n", b"abc"),
    "length empty": post(b"Content-Length: \r\n", b"abc"),
    "length beyond 64 bits": post(b"Content-Length: 99999999999999999999\r\n", b"abc"),
    "length then chunked": post(b"Content-Length: 3\r\n" + CHUNKED, b"0\r\n\r\n"),
    "chunked then length": post(CHUNKED + b"Content-Length: 3\r\n", b"0\r\n\r\n"),
    "chunked twice": post(CHUNKED + CHUNKED, b"0\r\n\r\n"),
    "chunked not last": post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "chunked in HTTP/1.0": post(CHUNKED, b"0\r\n\r\n", b"1.0"),
    "coding empty": post(b"Transfer-Encoding: \r\n", b"0\r\n\r\n"),
    "coding after a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "space before the colon": post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "line folding": post(b"X-A: b\r\n c\r\n"),
    "line folding at the start": b"GET / HTTP/1.1\r\n X-A: b\r\n" + HOST + b"\r\n",
    "bare LF between headers": post(b"X-A: b\nX-B: c\r\n"),
    "bare LF at the end": b"GET / HTTP/1.1\r\n" + HOST + b"\n",
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a.localhost\n\n",
    "bare CR in a value": post(b"X-A: b\rX-B: c\r\n"),
    "NUL in a value": post(b"X-A: b\0c\r\n"),
    "control in a value": post(b"X-A: b\x01c\r\n"),
    "space in a name": post(b"X A: b\r\n"),
    "empty name": post(b": b\r\n"),
    "chunk size by LF": post(CHUNKED, b"3\nabc\n0\n\n"),
    "chunk size in C": post(CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk size negative": post(CHUNKED, b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": post(CHUNKED, b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "chunk longer than its size": post(CHUNKED, b"3\r\nabcdef\r\n0\r\n\r\n"),
    "chunk extension with LF": post(CHUNKED, b"3;a\nabc\r\n0\r\n\r\n"),
    "chunk extension with CR": post(CHUNKED, b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "chunk data without its end": post(CHUNKED, b"3\r\nabcXX0\r\n\r\n"),
    "chunk data with half its end": post(CHUNKED, b"3\r\nabc\n0\r\n\r\n"),
    "last chunk with half its end": post(CHUNKED, b"0\r\n\n"),
    "chunk extension with NUL": post(CHUNKED, b"3;a\0\r\nabc\r\n0\r\n\r\n"),
    "chunk size empty": post(CHUNKED, b"\r\nabc\r\n0\r\n\r\n"),
    "chunk size with a space": post(CHUNKED, b"3 \r\nabc\r\n0\r\n\r\n"),
    "chunk size with a sign": post(CHUNKED, b"+3\r\nabc\r\n0\r\n\r\n"),
    "chunk size with an underscore": post(CHUNKED, b"0_3\r\nabc\r\n0\r\n\r\n"),
    "trailer with a bare LF": post(CHUNKED, b"0\r\nX: y\n\r\n"),
    "trailer with a NUL": post(CHUNKED, b"0\r\nX: y\0\r\n\r\n"),
    "length of 5,000 digits": post(b"Content-Length: " + b"9" * 5000 + b"\r\n", b"abc"),
    "length of 5,000 zeros": post(b"Content-Length: " + b"0" * 5000 + b"\r\n", b"abc"),
    "length in other digits": post("Content-Length: \u0663\r\n".encode(), b"abc"),
    "host twice": post(b"Host: a.localhost\r\n"),
    "host list": b"GET / HTTP/1.1\r\nHost: a.localhost, b.localhost\r\n\r\n",
    "host with a user": b"GET / HTTP/1.1\r\nHost: b@a.localhost\r\n\r\n",
    "host with a port of 5,000 digits": b"GET / HTTP/1.1\r\nHost: a.localhost:" + b"8" * 5000 + b"\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: a.localhost/x\r\n\r\n",
    "target with a user": b"GET http://b@a.localhost/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "target with a NUL": b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "target with a space": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "preface of HTTP/2, but for its target": b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "preface of HTTP/2, but for its end": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    "length in a trailer": post(CHUNKED, b"0\r\nContent-Length: 5\r\n\r\n"),
    "handshake with a body": post(
        b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n", b"abc"
    ),
}


@pytest.mark.parametrize("data", AMBIGUOUS_FRAMING.values(), ids=AMBIGUOUS_FRAMING.keys())
async def test_ambiguous_framing_is_refused_and_what_follows_is_never_served(site, data):
    site.app("a")
    answers = await site.raw(data + SECOND)
    assert [answer.status for answer in answers] == [400]
    assert answers[0].reason == "MALFORMED_REQUEST"
    assert answers[0].headers["connection"] == "close"


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"identity", b"xchunked", b"chunked;q=1", b'"chunked"'])
async def test_other_transfer_codings_are_not_implemented(site, coding):
    site.app("a")
    answers = await site.raw(post(b"Transfer-Encoding: " + coding + b"\r\n", b"0\r\n\r\n") + SECOND)
    assert [answer.status for answer in answers] in ([501], [400])


@pytest.mark.parametrize(
    "line",
    [b"GET / HTTP/2.0", b"GET / HTTP/0.9", b"GET /", b"GET / HTTP/1.2", b"GET / http/1.1", b"PRI * HTTP/2.0"],
)
async def test_other_versions_are_refused(site, line):
    site.app("a")
    answers = await site.raw(line + b"\r\n" + HOST + b"\r\n")
    assert [answer.status for answer in answers] in ([505], [400])


@pytest.mark.parametrize(
    "target",
    [
        b"/a#b",
        b"/\xff",
        b"/\0",
        b"*",
        b"a.localhost:80",
        b"x/y",
        b"ftp://a.localhost/",
        b'/"',
        b"/<x>",
        b"/a\\b",
        b"http://u@a.localhost/",
        b"http:///x",
    ],
)
async def test_targets_that_no_origin_server_is_sent_are_refused(site, target):
    site.app("a")
    answers = await site.raw(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert [answer.status for answer in answers] == [400]


HOSTS = [
    b"",
    HOST + HOST,
    HOST + b"Host: b.localhost\r\n",
    b"Host: a.localhost b\r\n",
    b"Host: a.localhost, b.localhost\r\n",
    b"Host: u@a.localhost\r\n",
    b"Host: a.localhost/x\r\n",
    b"Host: a.localhost:80x\r\n",
    b"Host: a.localhost:99999\r\n",
    b"Host: a..localhost\r\n",
    b"Host: \xffa.localhost\r\n",
    b"Host: [::1\r\n",
    b"Host: [::zz]\r\n",
    b"Host:\r\n a.localhost\r\n",
    b"Host : a.localhost\r\n",
]


@pytest.mark.parametrize("host", HOSTS)
async def test_a_missing_double_or_malformed_host_is_refused(site, host):
    site.app("a")
    [answer] = await site.raw(b"GET / HTTP/1.1\r\n" + host + b"\r\n")
    assert (answer.status, answer.reason) == (400, "MALFORMED_REQUEST")


@pytest.mark.parametrize("space", [b" ", b"\t", b" \t  "])
async def test_white_space_around_a_value_is_none_of_it(site, space):
    site.app("a")
    headers = [b"Host:localhost", b"X-App:a", b"Content-Length:3", b"X-Other:b c", b"Connection:close"]
    lines = [name + b":" + space + value + space for name, value in (line.split(b":") for line in headers)]
    [answer] = await site.raw(b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b"abc"]))
    assert answer.status == 200
    assert answer.body.endswith(
        b"body=abc\nheader host=localhost\nheader x-app=a\nheader content-length=3\n"
        b"header x-other=b c\nheader connection=close\n"
        b"header x-forwarded-proto=http\nheader x-forwarded-for=127.0.0.1"
    )


async def test_http_1_0_needs_no_host(site):
    site.app("a")
    [answer] = await site.raw(b"GET /apps/a/x HTTP/1.0\r\n\r\n")
    assert answer.status == 200
    assert answer.headers["connection"] == "close"


async def test_connect_and_server_wide_options_are_refused(site):
    site.app("a")
    [answer] = await site.raw(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.status == 501
    [answer] = await site.raw(b"CONNECT a.localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.status in (400, 501)


async def test_an_upgrade_that_is_not_taken_up_leaves_the_body_a_body(site):
    site.app("a")
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a.localhost\r\n\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    request = post(upgrade + b"Content-Length: %d\r\n" % len(hidden), hidden)
    first, second = await site.raw(request + SECOND)
    assert b"path=/first" in first.body
    assert b"body=GET /hidden" in first.body
    assert b"path=/second" in second.body
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    first, second = await site.raw(post(upgrade + CHUNKED, chunk) + SECOND)
    assert b"body=GET /hidden" in first.body
    assert b"path=/second" in second.body


async def test_thousands_of_upgrades_in_one_packet_do_no_harm(site):
    upgrade = b"GET /x HTTP/1.1\r\nHost: b.localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    answers = await site.raw(upgrade * 2000 + SECOND.replace(b"a.local", b"b.local"))
    assert {answer.status for answer in answers} == {404}
    assert len(answers) == 2001


async def test_trailers_never_become_headers(site):
    site.app("a")
    trailers = b"0\r\nHost: b.localhost\r\nX-Trailer: 1\r\n\r\n"
    first, second = await site.raw(post(CHUNKED, b"3;ext=1\r\nabc\r\n" + trailers) + SECOND)
    assert b"body=abc" in first.body
    assert b"trailer" not in first.body.lower()
    assert b"path=/second" in second.body


@pytest.mark.parametrize("junk", [b"1;" + b"x" * 30_000, b"1\r\na\r\n0\r\n" + b"T: x\r\n" * 5000])
async def test_endless_chunk_extensions_and_trailers_are_cut(site, junk):
    site.app("a")
    connection = await site.connect()
    connection.send(post(CHUNKED) + junk)
    await asyncio.sleep(0)
    for _ in range(20):
        connection.send(b"x" * 30_000 if b";" in junk else b"T: x\r\n" * 5000)
    assert b" 400 " in await connection.rest()


async def test_headers_and_targets_are_bounded(site):
    site.app("a")
    [answer] = await site.raw(b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 100 + b"\r\n")
    assert (answer.status, answer.reason) == (431, "HEADERS_TOO_LARGE")
    for size in (70_000, 700_000):
        [answer] = await site.raw(b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * size + b"\r\n\r\n")
        assert answer.status == 431
    client = await site.connect()
    for _ in range(2):
        client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await client.answer()).status == 200
    client.send(b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * 35_000)
    await client.writer.drain()
    await asyncio.sleep(0.05)  # so that it comes in two pieces
    client.send(b"b" * 35_000 + b"\r\n\r\n")
    assert b" 431 " in await client.rest()
    for size in (17_000, 700_000):
        [answer] = await site.raw(b"GET /" + b"b" * size + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (answer.status, answer.reason) == (414, "REQUEST_TARGET_TOO_LONG")
    big = b"a: " + b"b" * 1000 + b"\r\n"
    [answer] = await site.raw(b"GET / HTTP/1.1\r\n" + HOST + big * 60 + b"Connection: close\r\n\r\n")
    assert answer.status == 200


async def test_a_large_body_before_a_request_does_not_count_as_its_headers(site):
    site.app("a")
    body = b"x" * 200_000
    first, second = await site.raw(post(b"Content-Length: 200000\r\n", body) + SECOND)
    assert (first.status, second.status) == (200, 200)


async def test_pipelined_requests_are_answered_in_order_and_an_unreadable_one_last(site):
    site.app("a")
    one = b"GET /%d HTTP/1.1\r\nHost: a.localhost\r\n\r\n"
    answers = await site.raw(b"".join(one % n for n in range(20)) + b"NONSENSE\r\n\r\n" + SECOND)
    assert [answer.status for answer in answers] == [200] * 20 + [400]
    for number, answer in enumerate(answers[:-1]):
        assert b"path=/%d\n" % number in answer.body


async def test_pipelining_is_bounded(make_site):
    site = await make_site(FrontLimits(max_pipelined=4))
    site.app("a")
    answers = await site.raw(b"GET /x HTTP/1.1\r\nHost: a.localhost\r\n\r\n" * 1000)
    assert [answer.status for answer in answers] == [200] * 5


async def test_nothing_after_connection_close_is_served(site):
    site.app("a")
    answers = await site.raw(SECOND + b"GET /third HTTP/1.1\r\n" + HOST + b"\r\n")
    assert len(answers) == 1


async def test_expect_is_answered_once_the_app_reads(site):
    site.app("a")
    connection = await site.connect()
    connection.send(post(b"Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n"))
    assert (await connection.answer()).status == 100
    connection.send(b"abc")
    assert b"body=abc" in await connection.rest()
    [answer] = await site.raw(post(b"Expect: tea\r\nContent-Length: 3\r\n", b"abc"))
    assert answer.status == 417


async def test_an_app_that_answers_without_reading_never_asks_for_the_body(site):
    async def refuse(scope, receive, send):
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    site.app("a", refuse)
    connection = await site.connect()
    connection.send(post(b"Expect: 100-continue\r\nContent-Length: 30\r\n"))
    answer = await connection.answer()
    assert answer.status == 401
    assert answer.headers["connection"] == "close"
    assert await connection.rest() == b""


@pytest.mark.parametrize("length", [[], [(b"content-length", b"6")]])
async def test_the_body_is_not_asked_for_in_the_middle_of_a_response(site, length):
    async def answer_first(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        body = (await receive())["body"]
        await send({"type": "http.response.body", "body": body})

    site.app("a", answer_first)
    connection = await site.connect()
    connection.send(post(b"Expect: 100-continue\r\nContent-Length: 3\r\n"))
    assert (await connection.reader.readuntil(b"one")).startswith(b"HTTP/1.1 200 ")
    connection.send(b"two")
    assert b"100 Continue" not in await connection.rest()


async def test_problems_are_json_and_reflect_nothing_unchecked(site):
    for path in ("/apps/%3Cscript%3E/", "/apps/UPPER/x", "/apps/a'b/"):
        answer = await site.get(path, host="localhost")
        assert answer.status == 404
        assert answer.headers["content-type"] == "application/problem+json"
        document = json.loads(answer.body)
        assert document["reason"] == answer.reason == "APP_NOT_FOUND"
        assert "value" not in document
        assert b"script" not in answer.body
    answer = await site.get("/", "X-App: <b>", host="localhost")
    assert answer.status == 404
    assert b"<b>" not in answer.body
    answer = await site.get("/apps/shop/", host="localhost")
    assert json.loads(answer.body)["value"] == "shop"


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 100, b"\xff" * 1000]
)
async def test_bytes_that_are_not_http_are_refused(site, data):
    [answer] = await site.raw(data)
    assert answer.status == 400


@pytest.mark.parametrize(
    "coding", [b"chunked;q=1", b'"chunked"', b"gzip, chunked", b"chunked, chunked", b"identity"]
)
async def test_other_codings_are_refused_and_what_follows_is_never_served(site, coding):
    site.app("a")
    answers = await site.raw(post(b"Transfer-Encoding: " + coding + b"\r\n", b"0\r\n\r\n") + SECOND)
    assert [answer.status for answer in answers] in ([501], [400])


async def answer_at_once(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"early"})


@pytest.mark.parametrize("rest", [b"xyz\r\n", b"5\r\nabcdefgh\r\n", b"1;" + b"e" * 100_000])
async def test_a_bad_rest_of_an_answered_request_gets_no_second_answer(site, rest):
    site.app("a", answer_at_once)
    client = await site.connect()
    client.send(post(CHUNKED, b"3\r\nabc\r\n"))
    assert (await client.answer()).status == 200
    client.send(rest)
    # A proxy would take a second answer for that of another client's request.
    assert await client.rest() == b""


async def test_a_rest_that_never_comes_of_an_answered_request_gets_no_second_answer(make_site):
    site = await make_site(FrontLimits(keep_alive_timeout=0.2, linger_timeout=0.2))
    site.app("a", answer_at_once)
    client = await site.connect()
    client.send(post(b"Content-Length: 10\r\n", b"abc"))
    assert (await client.answer()).status == 200
    assert await client.rest() == b""


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAI\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket2\r\n",
        b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    ],
)
async def test_an_upgrade_that_is_not_taken_up_smuggles_nothing(site, upgrade):
    site.app("a")
    answers = await site.raw(post(upgrade + b"Content-Length: 3\r\n", b"abc") + SECOND)
    assert [answer.status for answer in answers] == [200, 200]
    assert b"body=abc" in answers[0].body
    assert b"path=/second" in answers[1].body
    # Chunk extensions and trailers, as of any request.
    answers = await site.raw(post(upgrade + CHUNKED, b"3;x=y\r\nabc\r\n0\r\nX-App: b\r\n\r\n") + SECOND)
    assert [answer.status for answer in answers] == [200, 200]
    assert b"header x-app" not in answers[0].body

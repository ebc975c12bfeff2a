import pytest

from runtime_node.http.problems import INTERNAL, Problem
from runtime_node.http.response import BadResponseError, Response, check_handshake, plain_bytes
from runtime_node.http.target import parse_target


def begun(response, body=b"", more=False, **options):
    known = {"head_only": False, "version": "1.1", "keep_alive": True, "date": b""}
    return response.begin(body, more, **{**known, **options})[0]


@pytest.mark.parametrize("status", [0, 99, 100, 101, 600, "200", None])
def test_a_final_status_is_needed(status):
    with pytest.raises(BadResponseError):
        Response(status, [], "localhost")


def test_equal_lengths_are_one_and_different_ones_none():
    response = Response(200, [(b"Content-Length", b"3"), (b"content-length", b"3")], "localhost")
    assert begun(response, b"abc").count(b"content-length: 3\r\n") == 1
    with pytest.raises(BadResponseError):
        Response(200, [(b"Content-Length", b"3"), (b"content-length", b"4")], "localhost")


@pytest.mark.parametrize("length", [b"-1", b"1.0", b" 1", b"1" * 19, b"1" * 5000, b"", b"0x1"])
def test_a_length_that_is_no_number_is_refused(length):
    with pytest.raises(BadResponseError):
        Response(200, [(b"content-length", length)], "localhost")


def test_names_are_lower_case_and_values_untouched():
    head = begun(Response(404, [(b"X-Thing", b" \xe9\tb ")], "localhost"))
    assert head == b"HTTP/1.1 404 Not Found\r\nx-thing:  \xe9\tb \r\ncontent-length: 0\r\n\r\n"


def test_connection_close_is_heard():
    assert Response(200, [(b"Connection", b"foo, Close")], "localhost").close
    assert not Response(200, [(b"Connection", b"keep-alive")], "localhost").close


def test_a_piece_that_may_not_be_sent_leaves_nothing_behind():
    response = Response(200, [(b"content-length", b"3")], "localhost")
    with pytest.raises(BadResponseError):
        begun(response, b"four")
    assert begun(response, b"abc") == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"


class Becomes(bytes):
    """Is looked at as what it is, and becomes something else."""

    def __bytes__(self):
        return b"x\r\n\r\nHTTP/1.1 200 OK"

    def __len__(self):
        return 1

    def __radd__(self, other):
        return self

    def lower(self):
        return bytes(self)


class Number(int):
    """Is found as one status, and says that it is another one."""

    def __eq__(self, other):
        return other == 200

    def __hash__(self):
        return hash(204)

    def __int__(self):
        return 304


def test_a_header_that_an_app_changes_after_it_was_looked_at_is_sent_as_it_was():
    value, view = bytearray(b"abc"), bytearray(b"def")
    response = Response(200, [(b"x-a", value), (b"x-b", memoryview(view))], "localhost")
    value[:], view[:] = b"\r\n\r\nHTTP/1.1 200 OK", b"\r\n\r"
    assert begun(response) == b"HTTP/1.1 200 OK\r\nx-a: abc\r\nx-b: def\r\ncontent-length: 0\r\n\r\n"


def test_bytes_of_an_apps_own_class_are_what_they_were_looked_at_as():
    response = Response(200, [(Becomes(b"x-new-name"), Becomes(b"value"))], "localhost")
    assert begun(response) == b"HTTP/1.1 200 OK\r\nx-new-name: value\r\ncontent-length: 0\r\n\r\n"
    assert check_handshake(200, [(Becomes(b"x-other-name"), Becomes(b"value"))], "localhost")[0] == [
        (b"x-other-name", b"value")
    ]
    assert plain_bytes(Becomes(b"body")) == b"body"
    assert type(plain_bytes(Becomes(b"body"))) is bytes


def test_a_status_of_an_apps_own_class_is_one_number():
    response = Response(Number(200), [], "localhost")
    assert (response.status, type(response.status)) == (200, int)
    assert begun(response, b"body").startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n")


@pytest.mark.parametrize("value", ["text", 5, None, [1]])
def test_what_is_no_bytes_is_refused(value):
    with pytest.raises(TypeError):
        Response(200, [(b"x-a", value)], "localhost")


@pytest.mark.parametrize(
    ("cookie", "kept"),
    [
        (b"a=1; Domain=apps.example.com; Path=/", b"a=1; Path=/"),
        (b"a=1;domain=.APPS.example.com", b"a=1"),
        (b'a=1; Domain = "apps.example.com." ; Secure', b"a=1; Secure"),
        (b"a=1; Domain=example.com", b"a=1"),
        (b"a=1; Domain=shop.apps.example.com; Domain=apps.example.com", b"a=1; Domain=shop.apps.example.com"),
        (b"a=1; Domain=shop.apps.example.com", None),
        (b"a=1; Domain=ple.com", None),
        (b"a=1; Domain=", None),
        (b"Domain=apps.example.com", None),
        (b"a=Domain=apps.example.com; X-Domain=apps.example.com", None),
    ],
)
def test_a_cookies_domain_that_covers_other_apps_is_dropped(cookie, kept):
    response = Response(200, [(b"Set-Cookie", cookie)], "apps.example.com")
    assert response.widened_cookie is (kept is not None)
    assert b"\r\nset-cookie: " + (kept or cookie) + b"\r\n" in begun(response)
    headers, widened = check_handshake(200, [(b"Set-Cookie", cookie)], "apps.example.com")
    assert (headers, widened) == ([(b"set-cookie", kept or cookie)], kept is not None)


def test_a_problem_says_how_long_it_is_also_without_a_body():
    plain, bare = INTERNAL.encode(), INTERNAL.encode(head_only=True)
    assert plain.startswith(bare)
    assert b"content-length: %d\r\n" % (len(plain) - len(bare)) in bare


def test_retry_after_is_whole_seconds_and_never_zero():
    for seconds, text in ((0.0, b"1"), (0.2, b"1"), (1.5, b"2"), (60, b"60")):
        assert b"retry-after: %b\r\n" % text in Problem(503, "X", "x", retry_after=seconds).encode()


def test_targets_are_taken_apart_undecoded():
    assert parse_target(b"/a%2Fb?c?d", "GET") == (b"/a%2Fb", b"c?d", None)
    assert parse_target(b"http://a:80/x?y", "GET") == (b"/x", b"y", b"a:80")
    assert parse_target(b"https://a?y", "GET") == (b"/", b"y", b"a")

import pytest

from runtime_node.http.problems import INTERNAL, Problem
from runtime_node.http.response import BadResponseError, ResponseHead
from runtime_node.http.target import parse_target


@pytest.mark.parametrize("status", [0, 99, 100, 101, 600, "200", None])
def test_a_final_status_is_needed(status):
    with pytest.raises(BadResponseError):
        ResponseHead(status, [])


def test_equal_lengths_are_one_and_different_ones_none():
    assert ResponseHead(200, [(b"Content-Length", b"3"), (b"content-length", b"3")]).content_length == 3
    with pytest.raises(BadResponseError):
        ResponseHead(200, [(b"Content-Length", b"3"), (b"content-length", b"4")])


def test_names_are_lower_case_and_values_untouched():
    head = ResponseHead(404, [(b"X-Thing", b" \xe9\tb ")])
    assert b"".join(head.lines) == b"HTTP/1.1 404 Not Found\r\nx-thing:  \xe9\tb \r\n"


def test_connection_close_is_heard():
    assert ResponseHead(200, [(b"Connection", b"foo, Close")]).close
    assert not ResponseHead(200, [(b"Connection", b"keep-alive")]).close


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

"""A forwarded request that another node has let nothing of in: when it is sent anew, and with what."""

import asyncio

import pytest

from runtime_node.forwarding.carried import BrokenLinkError
from runtime_node.forwarding.exchange import KEPT_BYTES, AgainError, Exchange
from runtime_node.http.problems import REASON_HEADER

MOVED_ON = [(REASON_HEADER, b"APP_MOVED"), (b"grpc-status", b"14")]
ANSWERED = [(b"content-type", b"text/plain")]


class FakeLink:
    """A connection whose other end answers once it has all of the body, or breaks off."""

    carries_trailers = False
    trailers = ()
    used = True
    heard = refused = False

    def __init__(self, headers, *, status=200, breaks=False):
        self.headers, self._status, self._breaks = headers, status, breaks
        self.status = 0
        self.body = b""
        self.aborted = False

    def ask(self, head):
        self.head_bytes = head.data

    async def body_is_wanted(self):
        return True

    def send_body(self, body, more):
        self.body += body
        if not more:
            self.status = self._status

    async def drain(self):
        pass

    async def head(self):
        # By then the body, which needs no waiting, was sent.
        while not self.status:
            await Turn()
        if self._breaks:
            raise BrokenLinkError("closed")

    async def read(self):
        return b"done"

    has_ended = has_news = True

    def abort(self):
        self.aborted = True


class Turn:
    """Gives the others one turn of the loop."""

    def __await__(self):
        yield


class Client:
    """Sends pieces of a body, and notes what it is answered."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.answer = []

    async def receive(self):
        if not self.pieces:
            await asyncio.Event().wait()
        piece = self.pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}

    async def send(self, message):
        self.answer.append(message.get("body", message.get("status")))

    def exchange(self, method="POST"):
        headers = [(b"host", b"a.localhost"), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": method, "http_version": "1.1", "raw_path": b"/",
                 "query_string": b"", "headers": headers}  # fmt: skip
        return Exchange(scope, self.receive, self.send, b"node-1")


async def test_where_the_app_has_moved_on_it_goes_on_with_all_of_its_body():
    client = Client(b"one", b"two")
    exchange = client.exchange()
    first, second = FakeLink(MOVED_ON), FakeLink(ANSWERED)
    with pytest.raises(AgainError):
        await exchange.run(first, last=False)
    assert (first.body, client.answer) == (b"onetwo", [])
    assert exchange.read_some
    await exchange.run(second, last=True)
    assert (second.body, client.answer) == (b"onetwo", [200, b"done"])


async def test_the_second_time_the_answer_is_passed_on():
    client = Client(b"one")
    await client.exchange().run(FakeLink(MOVED_ON, status=503), last=True)
    assert client.answer == [503, b"done"]


async def test_a_body_too_long_to_be_kept_is_sent_once():
    client = Client(bytes(KEPT_BYTES), b"x")
    await client.exchange().run(FakeLink(MOVED_ON), last=False)
    assert client.answer == [200, b"done"]


@pytest.mark.parametrize(
    ("method", "refused", "heard", "again"),
    [
        ("POST", True, False, True),
        ("POST", False, False, False),
        ("GET", False, False, True),
        ("GET", False, True, False),
    ],
)
async def test_a_connection_that_ends_under_it_is_replaced_where_nothing_was_let_in(
    method, refused, heard, again
):
    link = FakeLink(ANSWERED, breaks=True)
    link.refused, link.heard = refused, heard
    with pytest.raises(AgainError if again else BrokenLinkError):
        await Client(b"one").exchange(method).run(link, last=False)

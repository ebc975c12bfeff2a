"""The WSGI adapter against PEP 3333, with the standard library's validator between it and the app."""

import asyncio
import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from wsgiref.validate import validator

import pytest

from runtime_node.loader.wsgi import MAX_UNSENT_BYTES, ClientGoneError, WSGIAdapter
from tests.eventually import WITHIN, eventually

pytestmark = pytest.mark.filterwarnings("default::wsgiref.validate.WSGIWarning")


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as executor:
        yield executor


class Client:
    """Calls an adapter as a server would, with the pieces of one request's body."""

    def __init__(self, threads, app, *pieces, method="GET", path=b"/", headers=(), root_path="", query=b""):
        self.sent = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.wait_for_more = False
        self._adapter = WSGIAdapter(app, threads)
        self._pieces = list(pieces) or [b""]
        self._scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "raw_path": path,
            "path": path.decode("latin-1"), "root_path": root_path, "query_string": query,
            "headers": list(headers), "server": ("127.0.0.1", 80), "client": ("192.0.2.1", 5000),
        }  # fmt: skip

    async def receive(self):
        if not self._pieces:
            if self.wait_for_more:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}
        piece = self._pieces.pop(0)
        more = bool(self._pieces) or self.wait_for_more
        return {"type": "http.request", "body": piece, "more_body": more}

    async def send(self, message):
        await self.gate.wait()
        self.sent.append(message)

    async def call(self):
        async with asyncio.timeout(WITHIN):
            await self._adapter(self._scope, self.receive, self.send)
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return self.sent[0]["headers"]

    @property
    def body(self):
        assert not self.sent[-1]["more_body"]
        return b"".join(message["body"] for message in self.sent[1:])


def exc_info():
    try:
        raise LookupError("of the app")
    except LookupError:
        return sys.exc_info()


@validator
def answers(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"body"]


@validator
def streams(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"one "
    yield b""
    yield b"two"


@validator
def writes(environ, start_response):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"one ")
    return [b"two"]


@validator
def reads(environ, start_response):
    body = environ["wsgi.input"]
    taken = [body.read(1), body.readline(), body.readline(3), *body]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"|".join(taken)]


@validator
def replaces_its_head(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-First", "1")])
    start_response("500 Failed", [("Content-Type", "text/plain")], exc_info())
    return [b"sorry"]


@validator
def replaces_its_head_after_an_empty_block(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b""
    start_response("500 Failed", [("Content-Type", "text/plain")], exc_info())
    yield b"sorry"


@validator
def answers_nothing(environ, start_response):
    start_response("204 No Content", [])
    return []


@pytest.mark.parametrize(
    ("app", "status", "body"),
    [
        (answers, 200, b"body"),
        (streams, 200, b"one two"),
        (writes, 200, b"one two"),
        (replaces_its_head, 500, b"sorry"),
        (replaces_its_head_after_an_empty_block, 500, b"sorry"),
        (answers_nothing, 204, b""),
    ],
)
async def test_the_validator_finds_nothing_in_what_is_answered(threads, app, status, body):
    client = await Client(threads, app).call()
    assert (client.status, client.body) == (status, body)
    assert len([message for message in client.sent if message["type"] == "http.response.start"]) == 1
    assert (b"X-First", b"1") not in client.headers


async def test_the_validator_finds_nothing_in_the_input(threads):
    client = await Client(threads, reads, b"ab", b"c\nde", b"fg", b"hi\nj", b"k", method="POST").call()
    assert client.body == b"a|bc\n|def|ghi\n|jk"


async def test_a_second_start_response_without_exc_info_is_refused(threads):
    def app(environ, start_response):
        start_response("200 OK", [])
        start_response("201 Created", [])
        return [b"never"]

    client = Client(threads, app)
    with pytest.raises(AssertionError, match="a second time without exc_info"):
        await client.call()
    assert client.sent == []


async def test_exc_info_after_the_first_byte_raises_the_apps_own_error(threads):
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"half"
        start_response("500 Failed", [], exc_info())
        yield b"never"

    client = Client(threads, app)
    with pytest.raises(LookupError, match="of the app"):
        await client.call()
    assert [message.get("body") for message in client.sent] == [None, b"half"]
    assert client.sent[-1]["more_body"], "a response that broke off must not look whole"


@pytest.mark.parametrize(
    ("status", "headers", "block", "error"),
    [
        (b"200 OK", [], b"", "the status is a str"),
        ("OK", [], b"", "not one such as"),
        ("200 OK", [("x", b"y")], b"", "headers are str"),
        ("200 OK", [], "text", "yields bytes, not str"),
        ("200 OK", [], bytearray(b"x"), "yields bytes, not bytearray"),
        (None, None, b"x", "before it called start_response"),
    ],
)
async def test_what_is_no_response_is_an_error_of_the_app_with_the_rule(
    threads, status, headers, block, error
):
    def app(environ, start_response):
        if status is not None:
            start_response(status, headers)
        return [block]

    client = Client(threads, app)
    with pytest.raises((TypeError, ValueError, AssertionError), match=error):
        await client.call()
    assert client.sent == []


async def test_each_block_leaves_before_the_next_one_is_made(threads):
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    client = None

    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"first"
        asyncio.run_coroutine_threadsafe(asked.wait(), loop).result()
        yield b"second"

    client = Client(threads, app)
    calling = asyncio.create_task(client.call())
    await eventually(lambda: len(client.sent) == 2)
    assert client.sent[1]["body"] == b"first"
    asked.set()
    await calling
    assert client.body == b"firstsecond"


async def test_close_is_called_once_whatever_happens_and_after_the_last_byte(threads):
    events = []

    class Blocks:
        def __init__(self, fails):
            self.fails = fails

        def __iter__(self):
            yield b"x"
            if self.fails:
                raise RuntimeError("midway")

        def close(self):
            events.append("closed")

    for fails in (False, True):

        def app(environ, start_response, fails=fails):
            start_response("200 OK", [])
            return Blocks(fails)

        with contextlib.suppress(RuntimeError):
            await Client(threads, app).call()
    assert events == ["closed", "closed"]


async def test_a_thread_waits_for_a_slow_client_and_holds_a_bounded_part_of_the_response(threads):
    made = []

    def app(environ, start_response):
        start_response("200 OK", [])
        for _ in range(1000):
            made.append(1)
            yield b"x" * 10_000

    client = Client(threads, app)
    client.gate.clear()
    calling = asyncio.create_task(client.call())
    await eventually(lambda: len(made) * 10_000 >= MAX_UNSENT_BYTES)
    assert len(made) <= MAX_UNSENT_BYTES // 10_000 + 3
    client.gate.set()
    await calling
    assert len(client.body) == 10_000_000


async def test_a_reader_of_a_body_that_never_comes_goes_on_when_its_request_ends(threads):
    raised = asyncio.Event()
    loop = asyncio.get_running_loop()

    def app(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except ClientGoneError:
            loop.call_soon_threadsafe(raised.set)
            raise

    client = Client(threads, app, b"half", method="POST")
    client.wait_for_more = True
    calling = asyncio.create_task(client.call())
    await eventually(lambda: not client._pieces)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await asyncio.wait_for(raised.wait(), WITHIN)


async def test_a_call_that_its_executor_drops_ends(threads):
    executor = ThreadPoolExecutor(1)
    started, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def app(environ, start_response):
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        start_response("200 OK", [])
        return [b"done"]

    first = asyncio.create_task(Client(executor, app).call())
    await started.wait()
    second = asyncio.create_task(Client(executor, app).call())
    await asyncio.sleep(0)
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(ClientGoneError, match="stopped"):
        await second
    go_on.set()
    assert (await first).body == b"done"


async def test_the_environment_names_the_request_as_the_cgi_specification_does(threads):
    seen = {}

    @validator
    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    headers = [
        (b"host", b"shop.example"), (b"content-type", b"text/x"), (b"content-length", b"0"),
        (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x-many", b"1"), (b"x-many", b"2"),
        (b"x_many", b"forged"), (b"proxy", b"http://evil.example"),
    ]  # fmt: skip
    await Client(
        threads, app, path=b"/apps/shop/caf%C3%A9/%E9", root_path="/apps/shop", query=b"q=%20",
        headers=headers, method="POST",
    ).call()  # fmt: skip
    assert seen["SCRIPT_NAME"] == "/apps/shop"
    # Bytes as Latin-1, also where they are not UTF-8.
    assert seen["PATH_INFO"] == "/caf\xc3\xa9/\xe9"
    assert seen["QUERY_STRING"] == "q=%20"
    assert (seen["CONTENT_TYPE"], seen["CONTENT_LENGTH"]) == ("text/x", "0")
    assert (seen["HTTP_COOKIE"], seen["HTTP_X_MANY"]) == ("a=1; b=2", "1,2")
    assert (seen["REMOTE_ADDR"], seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("192.0.2.1", "127.0.0.1", "80")
    assert "HTTP_PROXY" not in seen

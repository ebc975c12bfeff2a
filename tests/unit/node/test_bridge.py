"""Requests carried between two loops."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runtime_node.tiers.bridge import MAX_BUFFERED_BYTES, Bridge
from runtime_node.tiers.cross_loop import run_on
from services.rpc.errors import SupervisorError
from tests.eventually import WITHIN

HTTP = {"type": "http", "headers": []}
WITH_BODY = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def bridge(app: Any, loop: asyncio.AbstractEventLoop, **state: Any) -> Bridge:
    return Bridge(app, state, loop, asyncio.get_running_loop())


async def no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def test_a_response_comes_over_whole_and_in_order(loop: asyncio.AbstractEventLoop) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert asyncio.get_running_loop() is loop
        assert scope["state"] == {"db": 1}
        assert await receive() == await no_body()
        await send({"type": "http.response.start", "status": 200})
        for number in range(100):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await bridge(app, loop, db=1)({**HTTP}, no_body, send)
    assert [m["body"] for m in sent[1:-1]] == [b"%d" % n for n in range(100)]


async def test_a_large_response_in_one_piece_lets_its_app_return(loop: asyncio.AbstractEventLoop) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "trailers": True})
        await send({"type": "http.response.body", "body": b"x" * (MAX_BUFFERED_BYTES + 1)})
        await send({"type": "http.response.trailers", "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async with asyncio.timeout(WITHIN):
        await bridge(app, loop)({**HTTP}, no_body, send)
    assert sent == ["http.response.start", "http.response.body", "http.response.trailers"]


async def test_an_app_begins_before_the_body_of_a_request_that_does_not_announce_one(
    loop: asyncio.AbstractEventLoop,
) -> None:
    begun = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await begun.wait()
        return await no_body()

    async def send(message: Any) -> None:
        begun.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        assert await receive() == await no_body()

    async with asyncio.timeout(WITHIN):
        await bridge(app, loop)({**HTTP, "http_version": "2"}, receive, send)


async def test_a_slow_client_holds_up_the_app_and_not_the_memory(loop: asyncio.AbstractEventLoop) -> None:
    produced = 0
    chunk = b"x" * 65536

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal produced
        for _ in range(100):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            produced += 1

    ahead: list[int] = []
    taken = 0

    async def send(message: Any) -> None:
        nonlocal taken
        await asyncio.sleep(0.001)
        taken += 1
        ahead.append(produced - taken)

    await bridge(app, loop)({**HTTP}, no_body, send)
    assert taken == 100
    assert max(ahead) <= MAX_BUFFERED_BYTES // len(chunk) + 2


async def test_a_body_is_asked_for_as_the_app_takes_it(loop: asyncio.AbstractEventLoop) -> None:
    asked = 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"%d" % asked, "more_body": asked < 5}

    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for count in range(1, 6):
            got.append((await receive())["body"])
            assert asked == count

    await bridge(app, loop)({**WITH_BODY}, receive, no_body)
    assert got == [b"1", b"2", b"3", b"4", b"5"]


async def test_each_of_several_calls_gets_a_message_of_its_own(loop: asyncio.AbstractEventLoop) -> None:
    numbers = iter(range(100))

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.request", "number": next(numbers)}

    got: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        abandoned = asyncio.create_task(receive())
        await asyncio.sleep(0)
        abandoned.cancel()
        messages = await asyncio.gather(*(receive() for _ in range(4)))
        got.extend(m["number"] for m in messages)

    await bridge(app, loop)({**WITH_BODY}, receive, no_body)
    assert got == [0, 1, 2, 3]


async def test_what_the_app_raises_is_raised(loop: asyncio.AbstractEventLoop) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        await bridge(app, loop)({**HTTP}, no_body, no_body)


async def test_what_the_front_raises_at_sending_ends_the_app(loop: asyncio.AbstractEventLoop) -> None:
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200})
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def send(message: Any) -> None:
        raise OSError("the client is gone")

    with pytest.raises(OSError, match="the client is gone"):
        await bridge(app, loop)({**HTTP}, no_body, send)
    assert await asyncio.to_thread(ended.wait, WITHIN)


async def test_a_websockets_app_hears_of_its_client_from_send_and_receive(
    loop: asyncio.AbstractEventLoop,
) -> None:
    heard: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            while True:
                await send({"type": "websocket.send", "text": "news"})
                await asyncio.sleep(0)
        except OSError as error:
            heard.append(error)
        await asyncio.sleep(0)
        heard.append((await receive())["type"])

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        raise OSError("the client is gone")

    async with asyncio.timeout(WITHIN):
        await bridge(app, loop)({"type": "websocket", "headers": []}, receive, send)
    assert isinstance(heard[0], OSError)
    assert heard[1:] == ["websocket.disconnect"]


async def test_cancelling_a_request_cancels_the_app(loop: asyncio.AbstractEventLoop) -> None:
    began, ended = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    request = asyncio.create_task(bridge(app, loop)({**HTTP}, no_body, no_body))
    assert await asyncio.to_thread(began.wait, WITHIN)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert await asyncio.to_thread(ended.wait, WITHIN)


async def test_a_hop_returns_raises_and_waits_for_the_cleanup_of_what_it_cancels(
    loop: asyncio.AbstractEventLoop,
) -> None:
    began, cleaned = threading.Event(), []

    async def works() -> int:
        return 1

    async def fails() -> int:
        raise LookupError

    async def hangs() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            cleaned.append(True)

    assert await run_on(loop, works()) == 1
    with pytest.raises(LookupError):
        await run_on(loop, fails())
    hanging = asyncio.create_task(run_on(loop, hangs()))
    assert await asyncio.to_thread(began.wait, WITHIN)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert cleaned == [True]


async def test_what_ends_its_own_loop_by_a_hop_does_not_end_the_callers() -> None:
    other = asyncio.new_event_loop()

    def run() -> None:
        while not ended.is_set():
            with contextlib.suppress(SystemExit):
                other.run_forever()
        other.close()

    async def exits() -> None:
        raise SystemExit(3)

    ended = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        with pytest.raises(SupervisorError, match="ended its task: SystemExit: 3"):
            await run_on(other, exits())
    finally:
        ended.set()
        other.call_soon_threadsafe(other.stop)
        await asyncio.to_thread(thread.join)


async def test_a_hop_to_a_loop_that_has_ended_is_refused() -> None:
    ended = asyncio.new_event_loop()
    ended.close()

    async def work() -> None:
        raise AssertionError

    with pytest.raises(RuntimeError):
        await run_on(ended, work())

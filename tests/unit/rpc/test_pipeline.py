"""The order of the pipeline's parts, and what each answers, for unary methods and streams alike."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.rpc.errors import SupervisorError
from services.rpc.pipeline.admission import SMALL, Admission, Bounds
from services.rpc.pipeline.call import Call
from services.rpc.pipeline.pipeline import Pipeline
from tests.unit.rpc.conftest import Context, Refused, Server

S = grpc.StatusCode
KINDS = ["unary", "stream"]


def add(server: Server, kind: str, behave: Any) -> None:
    """Register a method that calls `behave` and answers once."""

    async def unary(request: StringValue, call: Call) -> StringValue:
        return StringValue(value=behave(request, call))

    async def stream(request: StringValue, call: Call) -> AsyncIterator[StringValue]:
        yield StringValue(value=behave(request, call))

    server.add(kind, unary if kind == "unary" else stream, streams=kind == "stream")


def text(answer: Any) -> str:
    return StringValue.FromString(answer[0] if isinstance(answer, list) else answer).value


@pytest.mark.parametrize("kind", KINDS)
async def test_a_method_sees_the_call_that_the_parts_have_filled_in(server: Server, kind: str) -> None:
    seen: list[Call] = []

    def behave(request: StringValue, call: Call) -> str:
        seen.append(call)
        return request.value

    add(server, kind, behave)
    context = Context(left=5.0, x_actor="ci\x07", x_request_id="r-1")
    answer = await server.call(kind, StringValue(value="hello").SerializeToString(), context)
    assert text(answer) == "hello"
    (call,) = seen
    assert (call.method, call.request_id, call.peer) == (f"/test.Service/{kind}", "r-1", "ipv4:192.0.2.1:5")
    assert call.actor == "ci (ipv4:192.0.2.1:5)"
    assert 0 < call.caller().timeout <= 5
    assert call.caller(longest=1).timeout == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_the_parts_come_in_their_order_and_the_first_that_refuses_decides(kind: str) -> None:
    came: list[str] = []

    def identify(call: Call) -> None:
        came.append(f"identity of {call.request_id}")

    def authorize(call: Call, request: Any) -> None:
        came.append(f"authorize {request.value}")
        raise SupervisorError("APP_NOT_FOUND", "What is another's does not exist.")

    server = Server(Pipeline(identify=identify, authorize=authorize))
    add(server, kind, lambda request, call: came.append("method"))
    refused = await server.call(kind, StringValue(value="x").SerializeToString(), Context(x_request_id="r"))
    assert came == ["identity of r", "authorize x"]
    assert refused.code is S.NOT_FOUND
    assert server.pipeline.admission.calls == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("data", "left", "code", "reason"),
    [
        (b"\xff\xff", None, S.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
        (b"", 0.0, S.DEADLINE_EXCEEDED, "OPERATION_DEADLINE_EXCEEDED"),
    ],
)
async def test_what_is_refused_before_the_method_has_a_reason_and_writes_no_traceback(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    data: bytes,
    left: float | None,
    code: Any,
    reason: str,
) -> None:
    add(server, kind, lambda request, call: pytest.fail("called"))
    refused = await server.call(kind, data, Context(left=left))
    assert (refused.code, refused.info.reason) == (code, reason)
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
async def test_a_fault_is_internal_with_the_calls_id_and_the_log_has_the_rest(
    server: Server, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    def behave(request: Any, call: Call) -> str:
        raise RuntimeError("password=hunter2")

    add(server, kind, behave)
    with caplog.at_level(logging.ERROR):
        refused = await server.call(kind, b"", Context(x_request_id="mine"))
    assert refused.code is S.INTERNAL
    assert refused.message == "An internal error occurred; request id mine."
    assert refused.info.metadata["request_id"] == refused.trailers["x-request-id"] == "mine"
    (record,) = caplog.records
    assert "mine" in record.getMessage()
    assert record.exc_info


@pytest.mark.parametrize("told", ["x" * 65, "a b", "\x7f", ""])
async def test_an_id_that_is_not_fit_for_a_log_is_replaced(server: Server, told: str) -> None:
    seen: list[str] = []
    add(server, "unary", lambda request, call: seen.append(call.request_id) or "")
    await server.call("unary", b"", Context(x_request_id=told))
    assert seen[0]
    assert seen[0] != told


async def test_an_unknown_method_has_a_reason(server: Server) -> None:
    refused = await server.call("Nope")
    assert (refused.code, refused.info.reason) == (S.UNIMPLEMENTED, "METHOD_NOT_FOUND")
    assert dict(refused.info.metadata) == {"method": "Nope", "service": "test.Service"}


async def test_figures_tell_how_calls_ended_and_which_are_under_way(server: Server) -> None:
    go_on = asyncio.Event()

    async def wait(request: Any, call: Call) -> StringValue:
        await go_on.wait()
        return StringValue()

    server.add("Wait", wait)
    add(server, "unary", lambda request, call: "")
    await server.call("unary")
    await server.call("unary", b"\xff")
    waiting = [asyncio.create_task(server.call("Wait")) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait({waiting[0]})

    def figures() -> dict[tuple[str, ...], float]:
        return {
            (sample.name.removeprefix("appsupervisor_rpc_"), *sample.labels.values()): sample.value
            for metric in server.pipeline.figures.collect()
            for sample in metric.samples
        }

    seen = figures()
    assert seen["calls_total", "test.Service/unary", "OK"] == 1
    assert seen["calls_total", "test.Service/unary", "INVALID_ARGUMENT"] == 1
    assert seen["calls_total", "test.Service/Wait", "CANCELLED"] == 1
    assert seen["open_calls", "test.Service/Wait"] == 1
    assert seen["seconds_count", "test.Service/unary"] == 2
    go_on.set()
    await waiting[1]
    assert figures()["open_calls", "test.Service/Wait"] == 0


# What callers may have under way


def bounded(**bounds: Any) -> Server:
    return Server(Pipeline(admission=Admission(Bounds(**bounds))))


class Held:
    """A stream that yields once and then waits until it is let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, request: Any, call: Call) -> AsyncIterator[StringValue]:
        yield StringValue()
        await self.go_on.wait()


async def test_one_address_has_so_many_streams_and_others_have_theirs() -> None:
    server, held = bounded(streams_per_peer=2), Held()
    server.add("Hold", held, streams=True)
    mine = [asyncio.create_task(server.call("Hold", b"", Context(f"ipv4:192.0.2.1:{n}"))) for n in range(2)]
    other = asyncio.create_task(server.call("Hold", b"", Context("ipv6:%5B2001:db8::1%5D:2")))
    await asyncio.sleep(0)
    refused = await server.call("Hold", b"", Context("ipv4:192.0.2.1:9"))
    assert (refused.code, refused.info.reason) == (S.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
    assert refused.info.metadata["limit"] == "2"
    assert refused.retry.retry_delay.seconds > 0
    held.go_on.set()
    await asyncio.gather(*mine, other)
    assert await server.call("Hold", b"", Context("ipv4:192.0.2.1:9")) == [b""]


async def test_calls_and_bytes_of_requests_are_bounded_and_small_calls_go_on() -> None:
    server, go_on = (
        bounded(calls=3, request_bytes_per_peer=3 * SMALL, request_bytes=5 * SMALL),
        asyncio.Event(),
    )

    async def wait(request: Any, call: Call) -> StringValue:
        await go_on.wait()
        return StringValue()

    server.add("Wait", wait)
    add(server, "unary", lambda request, call: "")
    large = StringValue(value="x" * (2 * SMALL)).SerializeToString()
    waiting = [asyncio.create_task(server.call("Wait", large, Context("ipv4:192.0.2.1:1")))]
    await asyncio.sleep(0)
    refused = await server.call("unary", large, Context("ipv4:192.0.2.1:2"))
    assert (refused.code, refused.info.reason) == (S.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert refused.retry.retry_delay.seconds == 1
    assert text(await server.call("unary", b"", Context("ipv4:192.0.2.1:3"))) == ""
    waiting.append(asyncio.create_task(server.call("Wait", large, Context("ipv4:192.0.2.2:1"))))
    await asyncio.sleep(0)
    assert isinstance(await server.call("unary", large, Context("ipv4:192.0.2.3:1")), Refused)
    waiting.append(asyncio.create_task(server.call("Wait")))
    await asyncio.sleep(0)
    assert (await server.call("unary")).info.reason == "SERVER_BUSY"
    go_on.set()
    await asyncio.gather(*waiting)
    assert text(await server.call("unary", large)) == ""
    admission = server.pipeline.admission
    assert (admission.calls, admission.request_bytes, admission._peers) == (0, 0, {})


class SlowContext(Context):
    """Takes nothing until it is told to."""

    def __init__(self, peer: str) -> None:
        super().__init__(peer)
        self.takes = asyncio.Event()

    async def write(self, data: bytes) -> None:
        await self.takes.wait()
        await super().write(data)


async def test_bytes_that_an_address_does_not_read_are_bounded_and_hold_up_no_other_address() -> None:
    server = bounded(unread_bytes_per_peer=1000, unread_seconds=30)

    async def two(request: Any, call: Call) -> AsyncIterator[StringValue]:
        for _ in range(2):
            yield StringValue(value="x" * 600)

    server.add("Two", two, streams=True)
    slow = [SlowContext(f"ipv4:192.0.2.1:{n}") for n in range(3)]
    calls = [asyncio.create_task(server.call("Two", b"", context)) for context in slow]
    await asyncio.sleep(0)
    (peer,) = server.pipeline.admission._peers.values()
    assert peer.unread < 1000
    assert len(await server.call("Two", b"", Context("ipv4:192.0.2.2:1"))) == 2
    for context in slow:
        context.takes.set()
    assert [len(answer) for answer in await asyncio.gather(*calls)] == [2, 2, 2]
    assert peer.unread == 0


async def test_a_stream_whose_address_reads_nothing_ends_with_a_reason_and_the_unread_one_stays() -> None:
    server = bounded(unread_bytes_per_peer=1000, unread_seconds=0.0)

    async def one(request: Any, call: Call) -> AsyncIterator[StringValue]:
        yield StringValue(value="x" * 600)

    server.add("One", one, streams=True)
    slow = SlowContext("ipv4:192.0.2.1:1")
    first = asyncio.create_task(server.call("One", b"", slow))
    await asyncio.sleep(0)
    refused = await server.call("One", b"", Context("ipv4:192.0.2.1:2"))
    assert (refused.code, refused.info.reason) == (S.RESOURCE_EXHAUSTED, "UNREAD_STREAMS")
    assert not first.done()
    slow.takes.set()
    assert len(await first) == 1


async def test_a_stream_that_is_cancelled_ends_what_it_reads_from(server: Server) -> None:
    ended = asyncio.Event()

    async def endless(request: Any, call: Call) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield StringValue()
        finally:
            ended.set()

    server.add("Endless", endless, streams=True)
    call = asyncio.create_task(server.call("Endless", b"", SlowContext("ipv4:192.0.2.1:1")))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    assert ended.is_set()
    assert server.pipeline.admission.calls == 0


async def test_a_stream_whose_connection_breaks_is_cancelled_and_no_fault_of_the_server(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Context):
        async def write(self, message: bytes) -> None:
            raise grpc.aio.InternalError("Failed execute_batch")

    async def once(request: Any, call: Call) -> AsyncIterator[StringValue]:
        yield StringValue()

    server.add("Once", once, streams=True)
    with pytest.raises(asyncio.CancelledError):
        await server.call("Once", b"", Broken())
    assert not [it for it in caplog.records if it.levelno >= logging.WARNING]
    assert server.pipeline.admission.calls == 0

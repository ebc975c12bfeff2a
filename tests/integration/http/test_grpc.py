"""gRPC straight to a node: an app is a whole service, and the node's refusals are told in gRPC's words."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from runtime_node.http import GateLimits
from runtime_node.http.http2.grpc import is_grpc, status_fields, timeout_of
from runtime_node.http.problems import APP_RAISED, QUEUE_FULL, REQUEST_TIMEOUT, Problem, RefusedError
from tests.apps.grpc.calculator import Calculator
from tests.eventually import WITHIN, eventually
from tests.integration.http.calls import refusal

Code = grpc.StatusCode


async def to_its_end(call) -> list[bytes]:
    return [message async for message in call]


async def test_every_kind_of_call_reaches_an_app(site, dial):
    site.app("a", Calculator())
    channel = dial(site)
    assert await channel.unary_unary("/demo.Calculator/Echo")(b"hello", timeout=WITHIN) == b"hello"
    counted = channel.unary_stream("/demo.Calculator/Count")(b"4", timeout=WITHIN)
    assert [message async for message in counted] == [b"0", b"1", b"2", b"3"]
    add = channel.stream_unary("/demo.Calculator/Sum")
    assert await add(iter([b"1", b"20", b"300"]), timeout=WITHIN) == b"321"
    chat = channel.stream_stream("/demo.Calculator/Chat")(timeout=WITHIN)
    for word in (b"one", b"two"):
        await chat.write(word)
        assert await chat.read() == b"you said " + word
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF
    assert await chat.code() == Code.OK


async def test_a_status_comes_behind_the_messages_before_it(site, dial):
    site.app("a", Calculator())
    failing = dial(site).unary_stream("/demo.Calculator/Fail")(b"first", timeout=WITHIN)
    assert await failing.read() == b"first"
    told = await refusal(failing.read())
    assert (told.code(), told.details()) == (Code.FAILED_PRECONDITION, "not now")


async def test_large_messages_and_many_calls_pass(site, dial):
    gate = site.app("a", Calculator())
    echo = dial(site).unary_unary("/demo.Calculator/Echo")
    large = bytes(3_000_000)
    assert await echo(large, timeout=WITHIN) == large
    asked = [b"%d" % number for number in range(1_000)]
    assert await asyncio.gather(*(echo(it, timeout=WITHIN) for it in asked)) == asked
    await eventually(lambda: gate.figures().requests == 1_001)
    assert (gate.figures().errors, gate.figures().in_flight) == (0, 0)


async def test_the_callers_time_limit_holds_and_the_app_is_cancelled(site, dial):
    gate = site.app("a", Calculator())
    # The limit is told to the node alone: nobody here would give up first.
    waiting = dial(site).unary_stream("/demo.Calculator/Wait")(b"", metadata=[("grpc-timeout", "200m")])
    told = await refusal(to_its_end(waiting))
    assert told.code() == Code.DEADLINE_EXCEEDED
    assert "REQUEST_TIMEOUT" in (told.details() or "")
    await eventually(lambda: gate.figures().running == 0)
    assert gate.figures().timeouts == 1


async def test_a_call_that_is_cancelled_is_heard_of(site, dial):
    app = Calculator()
    site.app("a", app)
    call = dial(site).unary_stream("/demo.Calculator/Listen")(b"")
    assert await call.read() == b"listening"
    call.cancel()
    await eventually(lambda: app.cancelled == ["Listen"])


async def test_what_the_node_refuses_is_told_in_grpcs_words(site, dial):
    site.app("a", Calculator(), GateLimits(max_concurrent_requests=1, max_queued_requests=0))
    stopped = site.app("b", asgi=None)
    site.app("c", Calculator(), GateLimits(request_timeout=0.2))
    busy = dial(site).unary_stream("/demo.Calculator/Wait")(b"", timeout=WITHIN)
    assert await busy.read() == b"waiting"
    for host, code, reason in (
        ("no.localhost", Code.UNIMPLEMENTED, "APP_NOT_FOUND"),
        ("a.localhost", Code.UNAVAILABLE, "SERVER_BUSY"),
        ("b.localhost", Code.UNAVAILABLE, "INSTANCE_STOPPING"),
    ):
        told = await refusal(dial(site, host).unary_unary("/demo.Calculator/Echo")(b"", timeout=WITHIN))
        assert (told.code(), told.details().partition(":")[0]) == (code, reason)
        metadata = dict([*told.initial_metadata(), *told.trailing_metadata()])
        assert metadata["x-appsupervisor-reason"] == reason
    # The app's own limit, not the caller's.
    late = dial(site, "c.localhost").unary_stream("/demo.Calculator/Wait")(b"", timeout=WITHIN)
    assert (await refusal(to_its_end(late))).code() == Code.UNAVAILABLE
    assert stopped.figures().requests == 0
    busy.cancel()


async def test_an_app_that_fails_or_is_stopped_ends_its_calls_with_a_status(site, dial):
    gate = site.app("a", Calculator())
    channel = dial(site)
    failing = channel.unary_stream("/demo.Calculator/Raises")(b"", timeout=WITHIN)
    assert await failing.read() == b"first"
    assert (await refusal(failing.read())).details().startswith("APP_RAISED")
    waiting = channel.unary_stream("/demo.Calculator/Wait")(b"", timeout=WITHIN)
    assert await waiting.read() == b"waiting"
    assert await gate.drain(0) == 1
    told = await refusal(waiting.read())
    assert (told.code(), told.details().partition(":")[0]) == (Code.UNAVAILABLE, "INSTANCE_STOPPING")
    # Its channel goes on with the app that comes next.
    site.app("a", Calculator())
    assert await channel.unary_unary("/demo.Calculator/Echo")(b"x", timeout=WITHIN) == b"x"


async def test_an_app_without_trailers_says_its_status_in_its_head(site, dial):
    """As one of WSGI does, or one that was written for a proxy that makes trailers of headers."""

    async def app(scope, receive, send):
        refused = scope["path"].endswith("Refuse")
        status = b"7" if refused else b"0"
        fields = [
            (b"content-type", b"application/grpc"),
            (b"grpc-status", status),
            (b"grpc-message", b"said"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if refused else b"\0\0\0\0\1x"})

    site.app("a", app)
    channel = dial(site)
    assert await channel.unary_unary("/demo.Old/Say")(b"", timeout=WITHIN) == b"x"
    told = await refusal(channel.unary_unary("/demo.Old/Refuse")(b"", timeout=WITHIN))
    assert (told.code(), told.details()) == (Code.PERMISSION_DENIED, "said")


def test_what_is_grpc_and_how_long_it_may_take():
    assert [
        is_grpc(it) for it in (b"application/grpc", b"application/grpc+proto", b"Application/gRPC;x=1")
    ] == [True] * 3
    assert not any(map(is_grpc, (b"application/grpc-web", b"application/json", b"")))
    assert [timeout_of(it) for it in (b"2H", b"3M", b"4S", b"5m", b"6u", b"7n")] == pytest.approx(
        [7200, 180, 4, 5e-3, 6e-6, 7e-9]
    )
    for bad in (b"", b"5", b"123456789S", b"-1S", b"1.5S", b"1s"):
        with pytest.raises(RefusedError):
            timeout_of(bad)


def test_a_problem_is_told_by_grpcs_own_table():
    def code(problem, **more):
        return int(dict(status_fields(problem, **more))[b"grpc-status"])

    assert (code(QUEUE_FULL), code(APP_RAISED)) == (14, 2)
    assert (code(REQUEST_TIMEOUT), code(REQUEST_TIMEOUT, late=True), code(QUEUE_FULL, late=True)) == (
        14,
        4,
        14,
    )
    told = dict(status_fields(Problem(400, "MALFORMED_REQUEST", "50 % ü\n")))
    assert told[b"grpc-message"] == b"MALFORMED_REQUEST: 50 %25 %C3%BC%0A"
    assert told[b"grpc-status"] == b"13"

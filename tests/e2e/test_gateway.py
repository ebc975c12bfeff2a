"""Every app behind one address: answered by the node it is on, or by the gateway where there is none."""

from __future__ import annotations

import queue
import socket

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from websockets.sync.client import connect

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from tests.e2e.edge import MIXED, STATELESS, Edge, edge, stack
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.e2e.traffic import delete

__all__ = ("edge", "stack")

pytestmark = pytest.mark.slow

SAID = b"\0\0\0\0\1x"
ECHO = {"host": "echo.localhost", "content_type": "application/grpc-web+proto"}


def test_an_app_is_found_by_each_of_its_names(edge: Edge) -> None:
    for found in (
        edge.ask("/a?b=c", host="home.localhost"),
        edge.ask("/a?b=c", host=f"HOME.localhost:{edge.port}"),
        edge.ask("/a?b=c", host="home.example.com"),
        edge.ask("/a?b=c", x_app="home"),
        edge.ask("/apps/home/a?b=c"),
    ):
        assert (found.status, found.told["app"], found.told["path"]) == (200, "home", "/a")
    assert edge.ask("/apps/home/a").told["root_path"] == "/apps/home"
    metrics = edge.ask("/metrics", port=edge.metrics).text
    assert 'appsupervisor_gateway_domain_info{app="home",domain="home.example.com"} 1.0' in metrics
    assert edge.ask("/apps/home").headers["location"] == "/apps/home/"


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        ({"host": "nope.localhost"}, 404, "APP_NOT_FOUND"),
        ({"x_app": "nope"}, 404, "APP_NOT_FOUND"),
        ({"path": "/apps/nope/"}, 404, "APP_NOT_FOUND"),
        ({}, 404, "NO_APP_NAMED"),
        ({"host": "evil.example.net"}, 404, "NO_APP_NAMED"),
        ({"host": "evil.example.net", "path": "/apps/home/"}, 421, "HOST_NOT_LISTED"),
        ({"host": "evil.example.net", "x_app": "home"}, 421, "HOST_NOT_LISTED"),
    ],
)
def test_where_there_is_no_app_the_gateway_says_what_a_node_says(
    stack: Stack, edge: Edge, asked: dict[str, str], status: int, reason: str
) -> None:
    answer, of_node = edge.ask(**asked), edge.ask(**asked, port=stack.http_port())
    for name in ("content-type", "cache-control", "x-appsupervisor-reason"):
        assert answer.headers[name] == of_node.headers[name]
    assert answer.status == of_node.status == status
    words = ("type", "title", "status", "reason", "lookup", "value")
    assert {word: answer.told.get(word) for word in words} == {word: of_node.told.get(word) for word in words}
    assert answer.told["reason"] == reason


def test_an_app_is_told_who_asks_and_nothing_that_a_client_made_up(edge: Edge) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = edge.ask(
        host="home.localhost",
        x_forwarded_for="203.0.113.9",
        x_forwarded_proto="https",
        x_forwarded_host="bank.example.com",
        forwarded="for=203.0.113.9",
        x_real_ip="203.0.113.9",
        x_appsupervisor_route="a:other",
        x_envoy_retry_on="5xx",
        x_envoy_upstream_rq_timeout_ms="1",
        traceparent=parent,
    )
    told = answer.told
    headers = dict(told["headers"])
    assert (told["client"], told["scheme"]) == ("127.0.0.1", "http")
    assert headers["host"] == "home.localhost"
    assert headers["traceparent"] == parent
    assert headers["x-request-id"] == answer.headers["x-request-id"] != ""
    own = {"x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http"}
    forwarded = {
        name: value for name, value in headers.items() if name.startswith(("x-forwarded", "x-envoy"))
    }
    assert forwarded == own
    assert not {"forwarded", "x-real-ip", "x-appsupervisor-route", "x-appsupervisor-miss"} & headers.keys()


def test_bodies_events_and_websockets_pass(edge: Edge) -> None:
    assert edge.ask("/", "POST", b"x" * 300_000, host="home.localhost").told["length"] == 300_000
    assert edge.ask("/events/5", host="home.localhost").text.count("data: home") == 5
    url = f"ws://home.localhost:{edge.port}/room"
    with connect(url, sock=socket.create_connection(("127.0.0.1", edge.port)), proxy=None) as talk:
        talk.send("hello")
        assert talk.recv(timeout=DEADLINE) == "home hello"


def test_native_grpc_reaches_an_app_or_is_told_in_its_own_words(stack: Stack, edge: Edge) -> None:
    stack.create("echo", "echo:create_app", database=STATELESS)
    eventually(lambda: edge.ask("/demo.Echo/Say", "POST", SAID, **ECHO).status == 200, "the app answers")

    def channel(host: str) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{edge.port}", [("grpc.default_authority", host)])

    with channel("echo.localhost") as echo, channel("home.localhost") as home, channel("no.localhost") as no:
        large = b"x" * 300_000
        assert echo.unary_unary("/demo.Echo/Say")(large, timeout=DEADLINE) == large
        assert list(echo.unary_stream("/demo.Echo/Count")(b"abc", timeout=DEADLINE)) == [b"a", b"b", b"c"]
        for call, code, words in (
            (echo.unary_unary("/demo.Echo/Refuse"), grpc.StatusCode.PERMISSION_DENIED, "not you"),
            # By the table of gRPC itself: an answer of another kind is UNKNOWN where it is 200, and 404 says
            # that there is no such method.
            (home.unary_unary("/demo.Echo/Say"), grpc.StatusCode.UNKNOWN, ""),
            (no.unary_unary("/demo.Echo/Say"), grpc.StatusCode.UNIMPLEMENTED, "APP_NOT_FOUND"),
        ):
            with pytest.raises(grpc.RpcError) as told:
                call(b"x", timeout=DEADLINE)
            assert told.value.code() == code
            assert words in told.value.details()


def test_an_app_that_is_a_grpc_service_is_one_through_the_gateway_too(stack: Stack, edge: Edge) -> None:
    stack.create("calc", "calculator:create_app", database=STATELESS)
    options = [("grpc.default_authority", "calc.localhost")]
    with grpc.insecure_channel(f"127.0.0.1:{edge.port}", options) as calc:
        echo = calc.unary_unary("/demo.Calculator/Echo")

        def answers() -> bool:
            try:
                return bool(echo(b"x", timeout=DEADLINE) == b"x")
            except grpc.RpcError:
                return False

        eventually(answers, "the app answers")
        large = bytes(1_000_000)
        assert echo(large, timeout=DEADLINE) == large
        # By turns: each word is said after the answer to the one before.
        said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        chat = calc.stream_stream("/demo.Calculator/Chat")(iter(said.get, None), timeout=DEADLINE)
        for word in (b"one", b"two"):
            said.put(word)
            assert next(chat) == b"you said " + word
        said.put(None)
        assert next(chat, None) is None
        failing = calc.unary_stream("/demo.Calculator/Fail")(b"first", timeout=DEADLINE)
        assert next(failing) == b"first"
        with pytest.raises(grpc.RpcError) as told:
            next(failing)
        assert told.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    delete(stack, "calc")


def test_grpc_web_passes_as_it_is_and_a_calls_time_limit_holds(stack: Stack, edge: Edge) -> None:
    eventually(lambda: edge.ask("/demo.Echo/Say", "POST", SAID, **ECHO).status == 200, "the app answers")
    answer = edge.ask("/demo.Echo/Say", "POST", SAID, **ECHO)
    assert answer.headers["content-type"] == ECHO["content_type"]
    assert answer.text.startswith("\0\0\0\0\1x")
    assert "grpc-status: 0\r\n" in answer.text
    # The time limit of a native call is the edge's to hold: nobody here would give up first.
    native = {**ECHO, "content_type": "application/grpc"}
    late = edge.ask("/demo.Echo/Wait", "POST", SAID, **native, grpc_timeout="200m")
    assert late.headers["grpc-status"] == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
    delete(stack, "echo")


def test_a_stopped_app_is_told_as_its_node_tells_it_and_comes_back(stack: Stack, edge: Edge) -> None:
    stack.create("still", MIXED, database=STATELESS)
    edge.serves("still.localhost")
    stack.result(stack.apps.StopApp(catalog.StopAppRequest(name="apps/still"), timeout=DEADLINE))
    eventually(lambda: edge.ask(host="still.localhost").status == 404, "the stopped app is not found")
    assert edge.ask(host="still.localhost").headers["x-appsupervisor-reason"] == "APP_NOT_FOUND"
    stack.result(stack.apps.StartApp(catalog.StartAppRequest(name="apps/still"), timeout=DEADLINE))
    assert edge.serves("still.localhost").told["app"] == "still"


def test_a_dormant_app_is_woken_by_its_first_request(stack: Stack, edge: Edge) -> None:
    stack.create("sleepy", MIXED, database=STATELESS, activation=InstanceSpec.ON_REQUEST)
    # Until the gateway has heard which node has it, the gateway itself answers.
    assert edge.serves("sleepy.localhost").told["app"] == "sleepy"


def test_an_app_without_a_node_is_told_so_and_when_to_come_again(stack: Stack, edge: Edge) -> None:
    app = catalog.App(entrypoint=MIXED, database=STATELESS, node_selector={"no": "such"})
    stack.apps.CreateApp(catalog.CreateAppRequest(app_id="nowhere", app=app), timeout=DEADLINE)
    eventually(lambda: edge.ask(host="nowhere.localhost").status == 503, "the gateway knows the app")
    answer = edge.ask(host="nowhere.localhost")
    assert answer.told["reason"] == answer.headers["x-appsupervisor-reason"] == "NO_NODE_AVAILABLE"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_apps_own_time_limit_is_its_nodes_to_tell(stack: Stack, edge: Edge) -> None:
    limits = Limits(request_timeout=Duration(nanos=200_000_000))
    stack.create("brief", MIXED, database=STATELESS, limits=limits)
    edge.serves("brief.localhost")
    answer = edge.ask("/slow/20", host="brief.localhost")
    assert (answer.status, answer.told["reason"]) == (504, "REQUEST_TIMEOUT")

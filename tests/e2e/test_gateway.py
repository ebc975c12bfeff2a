"""Every app behind one address: answered by the node it is on, or by the gateway where there is none."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from websockets.sync.client import connect

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, Instance, InstanceSpec, Limits
from services.gateway.bootstrap import bootstrap
from tests.e2e.edge_traffic import EdgeTraffic
from tests.e2e.stack import DEADLINE, ROOT, Process, Stack, eventually, free_port
from tests.e2e.test_moves import is_ready
from tests.e2e.traffic import delete
from tests.envoy import needed_envoy
from tests.integration.test_shipped_configurations import flags_of, shipped_commands

pytestmark = pytest.mark.slow

NODES = "environments/default/nodes"
MIXED = "mixed:create_app"
# What is aimed at; how much of it a machine gives is printed, and no matter here.
SWAPS, MOVES, RATE, WIDTH = (
    int(os.environ.get(f"GATEWAY_{what}", count))
    for what, count in (("SWAPS", 6), ("MOVES", 4), ("RATE", 200), ("WIDTH", 2))
)
SAID = b"\0\0\0\0\1x"
ECHO = {"host": "echo.localhost", "content_type": "application/grpc-web+proto"}
STATELESS = Database(no_database=Database.NoDatabase())


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def told(self) -> dict[str, Any]:
        found = json.loads(self.text)
        assert isinstance(found, dict)
        return found


class Edge:
    """A gateway with an Envoy, in front of a stack."""

    def __init__(self, stack: Stack, *flags: str) -> None:
        self.port, xds, metrics = free_port(), free_port(), free_port()
        self.xds = f"127.0.0.1:{xds}"
        self.metrics = metrics
        self.process = Process(
            "gateway",
            [
                *("-m", "services.gateway", "--control-plane", stack.address),
                *("--listen", f"127.0.0.1:{self.port}", "--xds-listen", self.xds),
                *("--metrics-listen", f"127.0.0.1:{metrics}", "--envoy-workers", "1"),
                *flags,
            ],
            stack.folder / "gateway.log",
        )

    def ask(
        self,
        path: str = "/",
        method: str = "GET",
        body: bytes | None = None,
        *,
        host: str = "",
        port: int = 0,
        **headers: str,
    ) -> Answer:
        """Send one request on a connection of its own; status 0 if no answer came."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=DEADLINE)
        ) as connection:
            told = {name.replace("_", "-"): value for name, value in headers.items()}
            try:
                connection.request(method, path, body, {**({"Host": host} if host else {}), **told})
                answer = connection.getresponse()
                text = answer.read().decode("utf-8", "replace")
            except (OSError, http.client.HTTPException) as broken:
                return Answer(0, {}, repr(broken))
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)

    def serves(self, host: str) -> Answer:
        """Wait until an app answers."""
        last = [Answer(0, {}, "")]

        def look() -> bool:
            last[0] = self.ask(host=host)
            return last[0].status == 200

        eventually(look, f"{host} is served by the gateway")
        return last[0]

    def figure(self, name: str) -> float:
        """Return one of the gateway's metrics; 0 while it has none."""
        answer = self.ask("/metrics", port=self.metrics)
        lines = (line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#"))
        return sum(float(value) for key, _, value in lines if key.partition("{")[0] == name)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    needed_envoy()
    folder: Path = tmp_path_factory.mktemp("gateway") / "stack"
    stack = Stack(
        folder, app_dirs=(ROOT / "compose/apps", ROOT / "tests/apps/gateway", ROOT / "tests/apps/grpc")
    )
    try:
        stack.start("--trusted-proxy=127.0.0.1")
        stack.add_node("node-2", "default", "--trusted-proxy=127.0.0.1")
        for node in ("node-1", "node-2"):
            eventually(lambda node=node: is_ready(stack, node), f"{node} is ready")
        stack.create("home", MIXED, database=STATELESS, domains=["home.example.com"])
        yield stack
    finally:
        stack.clean_up()


@pytest.fixture(scope="module")
def edge(stack: Stack) -> Iterator[Edge]:
    edge = Edge(stack)
    try:
        edge.process.start()
        edge.serves("home.localhost")
        yield edge
    finally:
        edge.process.clean_up()
        print(f"---- gateway\n{edge.process.text()[-20_000:]}")


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


def test_a_killed_envoy_comes_back_and_finds_everything(edge: Edge) -> None:
    starts = edge.figure("appsupervisor_gateway_envoy_starts")
    envoy = int(eventually(lambda: _envoy_of(edge.process.pid), "the Envoy runs"))
    os.kill(envoy, signal.SIGKILL)
    eventually(
        lambda: edge.figure("appsupervisor_gateway_envoy_starts") > starts, "another Envoy was started"
    )
    assert edge.serves("home.localhost").told["app"] == "home"
    assert edge.figure("appsupervisor_gateway_xds_refusals_total") == 0


def test_no_request_is_lost_while_apps_are_swapped_moved_and_drained(stack: Stack, edge: Edge) -> None:
    apps = ["ant", "bee"]
    for name in apps:
        stack.create(name, MIXED, database=STATELESS)
        edge.serves(f"{name}.localhost")
    with EdgeTraffic(edge.port, apps, RATE, WIDTH) as traffic:
        traffic.goes_on()
        for number in range(SWAPS):
            request = catalog.RestartAppRequest(name=f"apps/{apps[number % 2]}")
            stack.result(stack.apps.RestartApp(request, timeout=DEADLINE))
        for number in range(MOVES):
            move = catalog.MoveAppRequest(name=f"apps/{apps[number % 2]}")
            stack.result(stack.apps.MoveApp(move, timeout=DEADLINE))
        for node in ("node-1", "node-2"):
            drain = fleet.DrainNodeRequest(name=f"{NODES}/{node}")
            done = stack.wait(stack.fleet.DrainNode(drain, timeout=DEADLINE))
            assert done.WhichOneof("result") == "response", done
            traffic.goes_on()
            uncordon = fleet.UncordonNodeRequest(name=f"{NODES}/{node}")
            stack.fleet.UncordonNode(uncordon, timeout=DEADLINE)
        traffic.goes_on()
    print(f"{traffic.rate:.0f} answers a second", traffic.answers, traffic.refused)
    assert (traffic.wrong, traffic.failed) == ([], [])
    assert [kind for kind in traffic.refused if kind != "websocket 1012"] == []
    for name in apps:
        delete(stack, name)


def test_replicas_share_the_requests_and_one_that_is_killed_costs_none_that_may_be_repeated(
    stack: Stack, edge: Edge
) -> None:
    stack.create("twin", MIXED, database=STATELESS, replicas=2)
    replicas(edge, "twin")
    stack.nodes["node-2"].kill()
    answers = [edge.ask(host="twin.localhost").status for _ in range(100)]
    assert answers == [200] * 100
    stack.nodes["node-2"].start()
    eventually(lambda: is_ready(stack, "node-2"), "node-2 is back")
    delete(stack, "twin")


def test_more_than_the_replicas_take_is_told_by_the_gateway_and_costs_no_neighbour(
    stack: Stack, edge: Edge
) -> None:
    limits = Limits(max_concurrent_requests=1, max_queued_requests=0)
    stack.create("busy", MIXED, database=STATELESS, replicas=2, limits=limits)
    replicas(edge, "busy")
    told: list[Answer] = []

    def overloaded() -> bool:
        told.append(edge.ask("/", "POST", b"x", host="busy.localhost"))
        assert told[-1].status in {200, 503}, told[-1]
        return told[-1].status == 503 and "gateway" in told[-1].told["detail"]

    with ExitStack() as held:
        for _ in range(4):  # some are refused, two are held
            wire = held.enter_context(socket.create_connection(("127.0.0.1", edge.port)))
            wire.sendall(b"GET /slow/25 HTTP/1.1\r\nhost: busy.localhost\r\n\r\n")
        eventually(overloaded, "the gateway has as many as both replicas take")
        assert told[-1].told["reason"] == told[-1].headers["x-appsupervisor-reason"] == "SERVER_BUSY"
        assert int(told[-1].headers["retry-after"]) > 0
        assert edge.ask(host="home.localhost").status == 200
    edge.serves("busy.localhost")
    delete(stack, "busy")


def test_a_replica_that_does_nothing_but_fail_is_left_out_for_a_while(stack: Stack, edge: Edge) -> None:
    stack.create("pair", MIXED, database=STATELESS, replicas=2)
    ill = min(replicas(edge, "pair"))

    def left_out() -> bool:
        assert edge.ask(f"/ill/{ill}", host="pair.localhost").status in {200, 500}
        return edge.figure("envoy_cluster_outlier_detection_ejections_enforced_consecutive_5xx_total") > 0

    eventually(left_out, "the replica is left out")
    assert edge.ask(host="pair.localhost").status == 200
    delete(stack, "pair")


def test_a_killed_node_costs_its_own_apps_a_told_pause_and_the_others_nothing(
    stack: Stack, edge: Edge
) -> None:
    for name in ("stays", "goes"):
        stack.create(name, MIXED, database=STATELESS)
    move(stack, "stays", "node-1")
    move(stack, "goes", "node-2")
    for name in ("stays", "goes"):
        edge.serves(f"{name}.localhost")
    with EdgeTraffic(edge.port, ["stays"]) as others, EdgeTraffic(edge.port, ["goes"], 20) as own:
        for traffic in (others, own):
            traffic.goes_on()
        stack.nodes["node-2"].kill()
        eventually(lambda: node_of(stack, "goes") == "node-1", "the app is elsewhere", 2 * DEADLINE)
        for traffic in (others, own):
            traffic.goes_on()
    print(own.answers, own.refused, own.failed)
    assert (others.wrong, others.failed, dict(others.refused)) == ([], [], {})
    assert own.wrong == []
    # What was under way on the node is told as broken off, or cut; all that came later could be told to wait.
    assert len(own.failed) <= 2 * len(own.kinds), own.failed
    reasons = {kind.split()[-1] for kind in own.refused}
    assert reasons <= {"NODE_UNREACHABLE", "NO_NODE_AVAILABLE", "1012"}, own.refused
    stack.nodes["node-2"].start()


def test_the_control_plane_and_the_gateways_own_program_are_not_in_the_way(stack: Stack, edge: Edge) -> None:
    # It may have been on the node that was killed before.
    eventually(lambda: node_of(stack, "home"), "the app runs")
    edge.serves("home.localhost")
    with EdgeTraffic(edge.port, ["home"]) as traffic:
        traffic.goes_on()
        stack.control_plane.kill()
        traffic.goes_on(10)
        stack.control_plane.start()
        stack.wait_until_called()
        traffic.goes_on()
    assert (traffic.wrong, traffic.failed, dict(traffic.refused)) == ([], [], {})
    # What changes from then on is followed again.
    stack.create("late", MIXED, database=STATELESS)
    edge.serves("late.localhost")
    delete(stack, "late")


def test_another_envoy_goes_on_without_the_gateway_and_is_then_told_what_has_changed(
    stack: Stack, tmp_path: Path
) -> None:
    edge = Edge(stack, "--no-envoy")
    settings = tmp_path / "envoy.json"
    settings.write_text(json.dumps(bootstrap("envoy-9", edge.xds)))
    program = [needed_envoy(), "--config-path", str(settings), "--disable-hot-restart", "--concurrency", "1"]
    log = (tmp_path / "envoy.log").open("wb")
    envoy = subprocess.Popen([*program, "--log-level", "warning"], stdout=log, stderr=log)
    try:
        edge.process.start()
        edge.serves("home.localhost")
        told = edge.figure("appsupervisor_gateway_xds_messages_total")
        assert told > 0
        edge.process.kill()
        stack.create("meanwhile", MIXED, database=STATELESS)
        assert edge.serves("home.localhost").told["app"] == "home"
        assert edge.ask(host="meanwhile.localhost").status == 404
        edge.process.start()
        edge.serves("meanwhile.localhost")
        # One message about the new app, and none about what it had.
        kinds = [
            line
            for line in edge.ask("/metrics", port=edge.metrics).text.splitlines()
            if "xds_messages_total{" in line
        ]
        assert edge.figure("appsupervisor_gateway_xds_messages_total") == 1, kinds
        with grpc.insecure_channel(edge.xds) as channel:
            health = HealthStub(channel)
            for name in ("envoys/envoy-9", "envoy.service.discovery.v3.AggregatedDiscoveryService"):
                answer = health.Check(HealthCheckRequest(service=name), timeout=DEADLINE)
                assert answer.status == HealthCheckResponse.SERVING
            reflection = ServerReflectionStub(channel)
            asked = ServerReflectionRequest(list_services="")
            (listed,) = reflection.ServerReflectionInfo(iter([asked]), timeout=DEADLINE)
            names = {service.name for service in listed.list_services_response.service}
            assert "envoy.service.discovery.v3.AggregatedDiscoveryService" in names
    finally:
        edge.process.clean_up()
        envoy.terminate()
        envoy.wait(DEADLINE)
        log.close()
        print(
            f"---- gateway\n{edge.process.text()[-5_000:]}\n{(tmp_path / 'envoy.log').read_text()[-5_000:]}"
        )
    delete(stack, "meanwhile")


@pytest.mark.parametrize("name", ["compose gateway", "kubernetes appsupervisor-gateway"])
def test_a_shipped_command_serves_with_loopback_for_its_addresses(stack: Stack, name: str) -> None:
    flags = flags_of(dict(shipped_commands())[name])
    for address in ("--control-plane", "--listen", "--metrics-listen"):
        del flags[address]
    edge = Edge(stack, *(word for flag in flags.items() for word in flag))
    try:
        edge.process.start()
        edge.serves("home.localhost")
        assert edge.process.terminate() == 0
    finally:
        edge.process.clean_up()
        print(f"---- gateway\n{edge.process.text()[-5_000:]}")


def test_a_gateway_that_is_told_to_end_lets_requests_end_and_has_logged_them(stack: Stack) -> None:
    edge = Edge(stack)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    try:
        edge.process.start()
        edge.serves("home.localhost")
        asked = [edge.ask(x_app="home", traceparent=trace), edge.ask(host=f"home.example.com:{edge.port}")]
        answers: list[Answer] = []
        slow = threading.Thread(target=lambda: answers.append(edge.ask("/slow/5", host="home.localhost")))
        slow.start()
        active = "envoy_http_downstream_rq_active"
        eventually(lambda: edge.figure(active) > 0, "the request is under way")
        assert edge.process.terminate() == 0
        slow.join(DEADLINE)
        assert [answer.status for answer in answers] == [200]
        lines = [json.loads(line) for line in edge.process.text().splitlines() if line.startswith("{")]
        logged = {line["request_id"]: line for line in lines}
        by_name, by_domain = (logged[answer.headers["x-request-id"]] for answer in asked)
        assert (by_name["route"], by_name["status"], by_name["traceparent"]) == ("home.localhost", 200, trace)
        assert (by_domain["route"], by_domain["attempts"]) == ("home.example.com", 1)
        assert dict(asked[0].told["headers"])["x-request-id"] in logged
    finally:
        edge.process.clean_up()
        print(f"---- gateway\n{edge.process.text()[-5_000:]}")


def replicas(edge: Edge, app_id: str) -> set[str]:
    """Wait until both of an app's replicas answer; return their names."""
    told: set[str] = set()

    def both() -> bool:
        answer = edge.ask(host=f"{app_id}.localhost")
        told.update([answer.told["instance"]] if answer.status == 200 else [])
        return len(told) == 2

    eventually(both, "both replicas answer")
    return told


def move(stack: Stack, app_id: str, node: str) -> None:
    request = catalog.MoveAppRequest(name=f"apps/{app_id}", node=f"{NODES}/{node}")
    stack.result(stack.apps.MoveApp(request, timeout=DEADLINE))


def node_of(stack: Stack, app_id: str) -> str:
    newest = max(stack.get(app_id).instances, key=lambda one: one.epoch, default=None)
    return "" if newest is None or newest.state != Instance.RUNNING else newest.node.rpartition("/")[2]


def _envoy_of(parent: int) -> str:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return children[0] if children else ""

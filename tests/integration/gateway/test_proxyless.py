"""A real gRPC client finds an app by `xds:///` at the gateway, and calls the node that has it, wherever."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Limits
from services.gateway import proxyless
from services.gateway.bootstrap import grpc_bootstrap
from services.gateway.proxyless import ProxylessApps
from services.gateway.table import RoutingTable
from services.gateway.xds.cache import CLUSTER, ResourceCache
from services.gateway.xds.messages import message, parsed
from services.gateway.xds.servicer import SERVICE, DiscoveryServicer, register
from services.rpc.server import RpcServer, Service
from tests.conftest import RunTool
from tests.eventually import eventually
from tests.unit.gateway.test_canary import HEADER, tried
from tests.unit.gateway.test_table import N1, N2, N3, app, instance

PYTHON = Path(__file__).with_name("caller.py")
CLIENTS = Path(__file__).resolve().parents[2] / "clients"
BUILD = 480
"""Seconds for a first build, dependencies included, beside other work."""
SHOP = "xds:///shop.localhost"

Command = tuple[str, ...]


def build(folder: Path, client: str, *command: str) -> None:
    made = RunTool(folder)(*command, cwd=CLIENTS / client, timeout=BUILD)
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Build the client that is written in Go."""
    target = tmp_path_factory.mktemp("go") / "caller"
    build(target.parent, "proxyless-go", "go", "build", "-o", str(target), ".")
    return (str(target),)


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Build the client that is written in Java."""
    out = tmp_path_factory.mktemp("java")
    build(out, "proxyless-java", "mvn", "--quiet", "--batch-mode", f"-Dout={out}", "package")
    return "java", "-cp", f"{out}/caller.jar:{out}/libraries/*", "dev.appsupervisor.example.Caller"


def building(name: str, *tools: str) -> Any:
    """Return the parameter of a client that is built first."""
    return pytest.param(
        name, marks=[pytest.mark.slow, pytest.mark.timeout(BUILD + 120), pytest.mark.tool(*tools)]
    )


@pytest.fixture(params=["python", building("go", "go"), building("java", "mvn", "java")])
def caller(request: pytest.FixtureRequest) -> Command:
    """Return the command of a client; each is one of gRPC's own libraries."""
    if request.param == "python":
        return (sys.executable, str(PYTHON))
    command: Command = request.getfixturevalue(request.param)
    return command


class Echo(grpc.GenericRpcHandler):
    """Stands in for an app on a node: tells which node it is. Holds calls while `held`."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.calls = 0
        self.free = asyncio.Event()
        self.free.set()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method.endswith("Say"):
            return grpc.unary_unary_rpc_method_handler(self._say)
        return grpc.stream_stream_rpc_method_handler(self._talk)

    async def _say(self, _request: bytes, _context: Any) -> bytes:
        self.calls += 1
        await self.free.wait()
        return self.node.encode()

    async def _talk(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        self.calls += 1
        async for said in requests:
            yield f"{self.node} {said.decode()}".encode()


class Client:
    """The process of a client."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, what: str, target: str = SHOP, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, "target": target, **more}).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, "the client has ended"
        return dict(json.loads(line))

    async def comes_to(self, *nodes: str, **more: Any) -> None:
        """Wait until calls are answered by these, and by no others."""

        async def answers() -> list[str]:
            told = [await self.do("call", **more) for _ in range(4)]
            return sorted({str(one.get("from")) for one in told})

        await eventually(answers, lambda seen: seen == sorted(nodes))


class Edge:
    """The gateway's xDS over a table that the test keeps, and servers that stand in for nodes."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        cache = ResourceCache()
        self.table = RoutingTable(cache)
        self.found: dict[str, tuple[str, ...]] = {}
        self.apps = ProxylessApps(self.table, self.found.get)
        self.servicer = DiscoveryServicer(cache, self.apps.cache)
        self.port = 0

    async def start(self) -> None:
        """Listen, and again at the same port."""
        self._server = RpcServer([Service(SERVICE, register, self.servicer)], self.servicer.health)
        self.port = await self._server.start(f"127.0.0.1:{self.port}")
        self._stack.push_async_callback(self._server.stop, 0)

    async def stop(self) -> None:
        await self._server.stop(0)

    async def node(self, name: str, host: str = "127.0.0.1") -> Echo:
        """Start a server that stands in for a node, known by that host."""
        echo, server = Echo(name.rpartition("/")[2]), grpc.aio.server()
        server.add_generic_rpc_handlers((echo,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._stack.push_async_callback(server.stop, 0)
        self.table.put_node(Node(name=name, http_address=f"{host}:{port}", serves_http2=True))
        return echo

    async def client(self, caller: Command, before: str = "") -> Client:
        """Start a client; it asks when it first calls, and `before` this one other gateways."""
        told = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GRPC")},
            "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(
                grpc_bootstrap("client-1", f"{before}127.0.0.1:{self.port}")
            ),
        }
        process = await asyncio.create_subprocess_exec(
            *caller, env=told, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )  # fmt: skip

        async def end() -> None:
            if process.returncode is None:
                process.kill()
            await process.wait()

        self._stack.push_async_callback(end)
        return Client(process)


@asynccontextmanager
async def an_edge() -> AsyncIterator[Edge]:
    async with AsyncExitStack() as stack:
        edge = Edge(stack)
        await edge.start()
        yield edge


async def test_calls_go_on_over_moves_scaling_and_the_end_of_a_node(caller: Command) -> None:
    async with an_edge() as edge:
        for node in (N1, N2, N3):
            await edge.node(node)
        edge.table.put_app(app(instances=[instance(N1, 1)]))
        client = await edge.client(caller)
        first = asyncio.create_task(client.do("call"))
        await eventually(lambda: edge.servicer.clients)
        # Nothing is told before all is known: the client waits for it.
        assert not edge.servicer.sent_bytes
        edge.apps.cache.open()
        assert await first == {"from": "n1"}
        await client.do("begin")
        for epoch, node in enumerate((N2, N1, N3), start=2):
            edge.table.put_app(app(instances=[instance(node, epoch)]))
            await client.comes_to(node.rpartition("/")[2])
        edge.table.put_app(app(instances=[instance(N3, 4), instance(N1, 5)], replicas=2))
        await client.comes_to("n1", "n3")
        # The gateway away: all goes on as last known, and is told anew when it is back.
        await edge.stop()
        await client.comes_to("n1", "n3")
        edge.table.put_app(app(instances=[instance(N1, 5)]))
        await edge.start()
        await client.comes_to("n1")
        told = await client.do("end")
        assert not told.get("failed")
        assert set(told["answers"]) == {"n1", "n2", "n3"}
        assert not edge.servicer.refusals


async def test_of_several_gateways_another_one_is_asked_while_the_first_is_away(caller: Command) -> None:
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with an_edge() as edge:
            await edge.node(N1)
            edge.apps.cache.open()
            edge.table.put_app(app(instances=[instance(N1, 1)]))
            client = await edge.client(caller, f"127.0.0.1:{nobody.getsockname()[1]},")
            assert await client.do("call", wait=True) == {"from": "n1"}


async def test_what_is_asked_for_before_it_is_there_is_found_when_it_comes(caller: Command) -> None:
    async with an_edge() as edge:
        await edge.node(N1)
        edge.apps.cache.open()
        client = await edge.client(caller)
        early = asyncio.create_task(client.do("call", wait=True))
        await eventually(lambda: len(edge.apps.cache))
        edge.table.put_app(app())  # on no node yet: a call that waits goes on waiting
        edge.table.put_app(app(instances=[instance(N1, 1)], domains=["*.example.com"]))
        assert await early == {"from": "n1"}
        assert await client.do("call", "xds:///any.example.com:443") == {"from": "n1"}
        # Gone, and back.
        edge.table.remove_app("apps/shop")
        # A client in between has only lost its addresses.
        gone = await eventually(
            lambda: client.do("call"), lambda told: "shop.localhost" in told.get("said", "")
        )
        assert gone["code"] == "UNAVAILABLE"
        edge.table.put_app(app())
        nowhere = await eventually(lambda: client.do("call"), lambda told: told["said"] != gone["said"])
        assert nowhere["code"] == "UNAVAILABLE"
        edge.table.put_app(app(instances=[instance(N1, 2)]))
        await client.comes_to("n1")
        assert not edge.servicer.refusals


async def test_a_version_on_trial_gets_its_share_and_what_has_the_header(caller: Command) -> None:
    async with an_edge() as edge:
        for node in (N1, N2, N3):
            await edge.node(node)
        edge.apps.cache.open()
        edge.table.put_app(tried(header=HEADER))
        client = await edge.client(caller)
        await client.comes_to("n2", "n3")
        await client.comes_to("n1", metadata={"x-try": "yes"})
        edge.table.put_app(tried(weight_percent=50))
        await client.comes_to("n1", "n2", "n3")
        edge.table.put_app(app(instances=[instance(N2, 2), instance(N3, 3)], replicas=2))
        await client.comes_to("n2", "n3", metadata={"x-try": "yes"})
        assert not edge.servicer.refusals


async def test_a_node_with_a_name_is_called_once_its_addresses_are_found(caller: Command) -> None:
    async with an_edge() as edge:
        await edge.node(N1, "node-1.example.com")
        edge.apps.cache.open()
        edge.table.put_app(app(instances=[instance(N1, 1)]))
        client = await edge.client(caller)
        early = asyncio.create_task(client.do("call"))
        await eventually(lambda: len(edge.apps.cache) == 4)
        edge.found["node-1.example.com"] = ("127.0.0.1",)
        edge.apps.host_changed("node-1.example.com")
        assert await early == {"from": "n1"}


# grpc-java 1.83 sends all: it is left to the node's own bound.
@pytest.mark.parametrize("caller", ["python", building("go", "go")], indirect=True)
async def test_more_calls_than_an_apps_limits_take_are_not_sent(caller: Command) -> None:
    async with an_edge() as edge:
        echo = await edge.node(N1)
        edge.apps.cache.open()
        limits = Limits(max_concurrent_requests=1, max_queued_requests=1)
        edge.table.put_app(app(instances=[instance(N1, 1)], limits=limits))
        client, other = await edge.client(caller), await edge.client(caller)
        assert await client.do("call") == {"from": "n1"}
        echo.free.clear()
        # Told by the client itself, at once; another client has a bound of its own.
        await client.do("burst", calls=2)
        await eventually(lambda: echo.calls == 1 + 2)
        assert [(await client.do("call"))["code"] for _ in range(3)] == ["UNAVAILABLE"] * 3
        waiting = asyncio.create_task(other.do("call"))
        await eventually(lambda: echo.calls == 1 + 2 + 1)
        echo.free.set()
        assert await waiting == {"from": "n1"}
        assert (await client.do("rest"))["ended"] == [{"from": "n1"}] * 2


async def test_what_a_client_does_not_accept_is_told(
    caller: Command, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_edge() as edge:
        await edge.node(N1)
        broken = {"type": "LOGICAL_DNS"}  # looked up by the client, which is not told what
        monkeypatch.setattr(proxyless, "cluster", lambda name, _: parsed(CLUSTER, {"name": name, **broken}))
        edge.apps.cache.open()
        edge.table.put_app(app(instances=[instance(N1, 1)]))
        client = await edge.client(caller)
        early = asyncio.create_task(client.do("call", wait=True))
        await eventually(lambda: edge.servicer.refusals)
        assert set(edge.servicer.refusals) == {"Cluster"}
        assert [record.client for record in caplog.records if hasattr(record, "client")]  # type: ignore[attr-defined]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
            health: Any = HealthStub(channel)
            request = HealthCheckRequest(service="grpc-clients/client-1")
            assert (await health.Check(request)).status == HealthCheckResponse.NOT_SERVING
            monkeypatch.undo()
            edge.apps.app_changed("apps/shop")
            assert await early == {"from": "n1"}
            await eventually(
                lambda: health.Check(request), lambda told: told.status == HealthCheckResponse.SERVING
            )


async def test_a_stream_that_asks_for_what_is_not_served_ends_with_the_reason() -> None:
    async with an_edge() as edge:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
            ask: Any = channel.stream_stream(
                f"/{SERVICE}/StreamAggregatedResources",
                request_serializer=lambda request: request.SerializeToString(),
            )
            request = message("envoy.service.discovery.v3.DiscoveryRequest")
            call = ask()
            await call.write(request(type_url="type.googleapis.com/envoy.config.listener.v3.Listener"))
            with pytest.raises(grpc.aio.AioRpcError, match="must name what is asked for") as refused:
                await call.read()
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: not edge.servicer.clients)

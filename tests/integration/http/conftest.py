from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from runtime_node.forwarding import Carrier, Forwarder, ForwardGate, Target
from runtime_node.forwarding.carrier import CarrierLimits
from runtime_node.http import FrontLimits, Gate, GateLimits, HttpFront, Router
from tests.eventually import WITHIN, eventually
from tests.integration.http.calls import Dial
from tests.integration.http.http2_client import Client
from tests.integration.http.moved import Moved


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what the app saw, one line each."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    lines = [
        f"method={scope['method']}",
        f"path={scope['path']}",
        f"root_path={scope['root_path']}",
        f"raw_path={scope['raw_path'].decode()}",
        f"query={scope['query_string'].decode()}",
        f"body={body.decode('latin-1')}",
        *(f"header {name.decode()}={value.decode('latin-1')}" for name, value in scope["headers"]),
    ]
    text = "\n".join(lines).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        return self.headers.get("x-appsupervisor-reason", "")


def parse_answers(data: bytes) -> list[Answer]:
    """Take apart what a connection gave; fails on bytes that are not whole responses."""
    answers: list[Answer] = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", lines[0])
        assert match, lines[0]
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
        status = int(match[1])
        body = b""
        if "content-length" in headers:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
            assert len(body) == length, "truncated"
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                size, _, data = data.partition(b"\r\n")
                chunk, data = data[: int(size, 16)], data[int(size, 16) + 2 :]
                body += chunk
                if not chunk:
                    break
        elif headers.get("connection") == "close" and status >= 200:
            body, data = data, b""
        answers.append(Answer(status, headers, body))
    return answers


class Connection:
    """A raw client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, timeout: float = WITHIN) -> Answer:
        """Read one response; the connection stays."""
        async with asyncio.timeout(timeout):
            head = await self.reader.readuntil(b"\r\n\r\n")
            match = re.search(rb"content-length: (\d+)", head)
            body = await self.reader.readexactly(int(match[1])) if match else b""
        return parse_answers(head + body)[0]

    async def rest(self, timeout: float = WITHIN) -> bytes:
        """Read until the server closes; a reset is an end, too."""
        data = b""
        async with asyncio.timeout(timeout):
            try:
                while piece := await self.reader.read(65536):
                    data += piece
            except ConnectionError:
                pass
        return data

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Site:
    """A front with its router, and raw clients for it."""

    router: Router
    front: HttpFront
    faults: list[str] = field(default_factory=list)
    clients: list[Connection] = field(default_factory=list)

    def told(self, name: str, stack: str) -> None:
        assert name.startswith("apps/")
        self.faults.append(stack)

    def app(
        self,
        app_id: str,
        asgi: Any = echo,
        limits: GateLimits | None = None,
        domains: Sequence[str] = (),
    ) -> Gate:
        gate = Gate(f"apps/{app_id}/instances/1", limits or GateLimits(), self.told)
        if asgi is not None:
            gate.open(asgi)
        self.router.set(app_id, domains, gate)
        return gate

    @property
    def url(self) -> str:
        host, port = self.front.address
        return f"http://{host}:{port}"

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection(*self.front.address))
        self.clients.append(connection)
        return connection

    async def raw(self, data: bytes, *, timeout: float = WITHIN) -> list[Answer]:
        """Send bytes, close the sending side, and return every response up to the end."""
        connection = await self.connect()
        connection.send(data)
        connection.writer.write_eof()
        return parse_answers(await connection.rest(timeout))

    async def get(self, path: str, *headers: str, host: str = "a.localhost") -> Answer:
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "Connection: close", "", ""]
        [answer] = await self.raw("\r\n".join(lines).encode())
        return answer


SiteFactory = Callable[..., Awaitable[Site]]


@pytest.fixture
async def make_site() -> AsyncIterator[SiteFactory]:
    sites: list[Site] = []

    async def make(limits: FrontLimits | None = None, **options: Any) -> Site:
        router = Router()
        front = HttpFront("127.0.0.1", 0, router, limits=limits or FrontLimits(), **options)
        await front.start()
        sites.append(Site(router, front))
        return sites[-1]

    yield make
    for site in sites:
        for client in site.clients:
            await client.close()
        await site.front.stop(0)


@pytest.fixture
async def site(make_site: SiteFactory) -> Site:
    return await make_site()


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[Any]]:
    return eventually


@pytest.fixture
async def make_moved(make_site: SiteFactory) -> AsyncIterator[Callable[..., Awaitable[Moved]]]:
    carriers: list[Carrier] = []

    async def make(
        asgi: Any = None,
        *,
        limits: GateLimits | None = None,
        carrier_limits: CarrierLimits | None = None,
        target: Target | None = None,
        half_close: float = 2.0,
    ) -> Moved:
        bounds = FrontLimits(half_close_timeout=half_close)
        former = await make_site(bounds, trusted_proxies=["127.0.0.1"])
        home = await make_site(bounds, trusted_proxies=["127.0.0.1"])
        if asgi is not None:
            home.app("a", asgi)
        else:
            home.app("a")
        carrier = Carrier(
            former.front.loop, "environments/default/nodes/node-1", carrier_limits or CarrierLimits()
        )
        carriers.append(carrier)
        forwarder = Forwarder(carrier, "a", target or Target(*home.front.address, serves_http2=True))
        gate = ForwardGate("", limits or GateLimits())
        gate.open(forwarder)
        former.router.set("a", ["shop.example.com"], gate)
        return Moved(former, home, carrier, forwarder, gate)

    yield make
    for carrier in carriers:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(carrier.close(), carrier.loop))


@pytest.fixture
async def moved(make_moved: Callable[..., Awaitable[Moved]]) -> Moved:
    return await make_moved()


@pytest.fixture
async def connect(site: Site) -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    """Make clients of HTTP/2, of `site` unless they are told of another."""
    clients: list[Client] = []

    async def connect(where: Site | None = None, window: int = 65_535) -> Client:
        client = Client(*await asyncio.open_connection(*(where or site).front.address), window)
        clients.append(client)
        client.flush()
        return client

    yield connect
    for client in clients:
        await client.close()


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    """Return what opens channels of gRPC to sites; they are closed after the test."""
    channels: list[grpc.aio.Channel] = []

    def dial(site: Site, host: str = "a.localhost") -> grpc.aio.Channel:
        options = [("grpc.default_authority", host), ("grpc.max_receive_message_length", -1)]
        address, port = site.front.address
        channels.append(grpc.aio.insecure_channel(f"{address}:{port}", options))
        return channels[-1]

    yield dial
    for channel in channels:
        await channel.close()

"""A real node in this process, with its own ports and data, and an HTTP client of it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from runtime_node.server import Node
from runtime_node.tiers.process.zygote import Zygote
from tests.fakes.node_client import APPS, DEADLINE, Subject, node_settings


@dataclass
class Hosted(Subject):
    """A node under test with its insides and its HTTP side."""

    node: Node
    http: httpx.AsyncClient

    async def ask(self, app: str, path: str = "/", **options: Any) -> httpx.Response:
        """Send a request to an app by its name."""
        return await self.http.get(path, headers={"X-App": app}, **options)


@asynccontextmanager
async def hosting(directory: Path, zygote: Zygote | None = None, **flags: str) -> AsyncIterator[Hosted]:
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(Node(node_settings(directory, **flags), zygote).serving())
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(node.listen)))
        # To verify nobody spares it the authorities of the world: 40 ms of CPU for each client.
        client = httpx.AsyncClient(
            base_url=f"http://{node.http}",
            timeout=DEADLINE,
            verify=False,
            limits=httpx.Limits(max_connections=300),
        )
        http = await stack.enter_async_context(client)
        yield Hosted(RuntimeEnvironmentStub(channel), lambda: None, node, http)


@pytest.fixture
async def hosted(tmp_path: Path) -> AsyncIterator[Hosted]:
    async with hosting(tmp_path) as subject:
        yield subject


@pytest.fixture
async def hosted_with_processes(tmp_path: Path) -> AsyncIterator[Hosted]:
    zygote = Zygote.launch([APPS], preload=[])
    async with hosting(tmp_path, zygote) as subject:
        await zygote.ready()
        yield subject

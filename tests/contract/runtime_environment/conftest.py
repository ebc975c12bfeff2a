"""Two nodes under one suite: the real one, in this process, and the fake."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from runtime_node.server import Node
from runtime_node.settings import NodeSettings, read_settings
from services.rpc.status import reason_of
from tests.fakes.runtime_node import Behaviour, FakeNode

APPS = Path(__file__).resolve().parents[2] / "apps" / "node"
MAX_INSTANCES = 8
DEADLINE = 10.0

BEHAVIOURS = {
    "behaviours:ready": Behaviour(),
    "behaviours:hangs_in_startup": Behaviour(ready_after=None),
    "behaviours:raises_in_startup": Behaviour(
        fails=("APP_STARTUP_FAILED", "RuntimeError: the startup is broken")
    ),
    "cannot_import:create_app": Behaviour(fails=("ENTRYPOINT_IMPORT_FAILED", "RuntimeError")),
    "no_such_module:create_app": Behaviour(fails=("ENTRYPOINT_MODULE_NOT_FOUND", "no_such_module")),
    "behaviours:slow_to_stop": Behaviour(stop_after=0.3),
}


def node_settings(directory: Path, **changes: str) -> NodeSettings:
    """Return settings of a node on free ports that keeps its data in `directory`."""
    flags = {
        "listen": "127.0.0.1:0",
        "http-listen": "127.0.0.1:0",
        "data-dir": str(directory / "data"),
        "app-dir": str(APPS),
        "max-instances": str(MAX_INSTANCES),
        "shutdown-timeout": "5",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    arguments = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    return read_settings(arguments, {})


@dataclass
class Subject:
    """A node under test, called as any client calls it."""

    stub: Any
    drain: Callable[[], Any]

    def spec(self, name: str = "apps/shop/instances/a1", **fields: Any) -> pb.InstanceSpec:
        fields = {
            "app_uid": "uid-1",
            "generation": 1,
            "epoch": 1,
            "entrypoint": "behaviours:ready",
            "isolation": pb.SHARED,
            **fields,
        }
        return pb.InstanceSpec(name=name, **fields)

    async def start(self, spec: pb.InstanceSpec | None = None, **fields: Any) -> pb.Instance:
        request = pb.StartInstanceRequest(spec=spec or self.spec(**fields))
        return (await self.stub.StartInstance(request)).instance

    async def stop(self, name: str = "apps/shop/instances/a1", epoch: int = 1, **fields: Any) -> pb.Instance:
        request = pb.StopInstanceRequest(name=name, epoch=epoch, **fields)
        return (await self.stub.StopInstance(request)).instance

    async def restart(
        self, name: str = "apps/shop/instances/a1", epoch: int = 1, **fields: Any
    ) -> pb.Instance:
        request = pb.RestartInstanceRequest(name=name, epoch=epoch, **fields)
        return (await self.stub.RestartInstance(request)).instance

    async def get(self, name: str = "apps/shop/instances/a1") -> pb.Instance:
        return await self.stub.GetInstance(pb.GetInstanceRequest(name=name))

    def watch(self, resume_token: str = "", heartbeat: float = 0.1) -> Any:
        span = Duration()
        span.FromNanoseconds(int(heartbeat * 1e9))
        return self.stub.WatchInstances(
            pb.WatchInstancesRequest(resume_token=resume_token, heartbeat_interval=span)
        )

    async def reaches(self, state: pb.State.ValueType, name: str = "apps/shop/instances/a1") -> pb.Instance:
        """Wait on a watch stream until the instance is in `state`, and return it."""
        stream = self.watch()
        try:
            async with asyncio.timeout(DEADLINE):
                async for message in stream:
                    if message.instance.name == name and message.instance.state == state:
                        return message.instance
        finally:
            stream.cancel()
        raise AssertionError("the stream ended")

    async def is_gone(self, name: str = "apps/shop/instances/a1") -> None:
        """Wait until the instance is not there any more."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                await self.get(name)
            except grpc.aio.AioRpcError as error:
                assert reason_of(error) == "INSTANCE_NOT_FOUND"  # noqa: PT017
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} is still there")


@pytest.fixture(params=["fake", "real"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        drain: Callable[[], Any]
        if request.param == "fake":
            fake = FakeNode(behaviours=BEHAVIOURS, max_instances=MAX_INSTANCES)
            address = await fake.start()
            stack.push_async_callback(fake.kill)
            drain = fake.drain
        else:
            serving = Node(node_settings(tmp_path)).serving()
            real = await serving.__aenter__()
            ended: list[bool] = []

            async def end() -> None:
                if not ended:
                    ended.append(True)
                    await serving.__aexit__(None, None, None)

            stack.push_async_callback(end)
            address, drain = str(real.listen), end
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield Subject(RuntimeEnvironmentStub(channel), drain)

"""A client of one node as tests use it: short commands, waits on conditions, expected refusals."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.settings import NodeSettings, read_settings
from services.rpc.status import DETAILS_KEY, reason_of
from tests.eventually import WITHIN, eventually

APPS = Path(__file__).resolve().parents[1] / "apps" / "node"
DEADLINE = WITHIN


def node_settings(directory: Path, **changes: str) -> NodeSettings:
    """Return settings of a node on free ports that keeps its data in `directory`."""
    flags = {
        "listen": "127.0.0.1:0",
        "http-listen": "127.0.0.1:0",
        "data-dir": str(directory / "data"),
        "app-dir": str(APPS),
        "shutdown-timeout": "5",
        "metrics-listen": "off",
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
            "isolation": pb.InstanceSpec.SHARED,
            **fields,
        }
        return pb.InstanceSpec(name=name, **fields)

    async def start(
        self, spec: pb.InstanceSpec | None = None, *, start_now: bool = False, **fields: Any
    ) -> pb.Instance:
        request = pb.StartInstanceRequest(spec=spec or self.spec(**fields), start_now=start_now)
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

    async def reaches(
        self, state: pb.Instance.State.ValueType, name: str = "apps/shop/instances/a1"
    ) -> pb.Instance:
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
        await eventually(lambda: self._is_gone(name))

    async def _is_gone(self, name: str) -> bool:
        try:
            await self.get(name)
        except grpc.aio.AioRpcError as error:
            assert reason_of(error) == "INSTANCE_NOT_FOUND"  # noqa: PT017
            return True
        return False


class Refused:
    """Expects a call to be refused with a code and a reason."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        self._code, self._reason = code, reason
        self.error: grpc.aio.AioRpcError

    async def __aenter__(self) -> "Refused":
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> bool:
        assert isinstance(error, grpc.aio.AioRpcError), f"expected {self._reason}, got {error!r}"
        assert (error.code(), reason_of(error)) == (self._code, self._reason)
        self.error = error
        return True


def fields_of(error: grpc.aio.AioRpcError) -> set[str]:
    packed = dict(error.trailing_metadata() or ())[DETAILS_KEY]
    bad = error_details_pb2.BadRequest()
    for detail in Status.FromString(packed).details:
        if detail.Unpack(bad):
            return {violation.field for violation in bad.field_violations}
    return set()

"""Two nodes under one suite: the real one, in this process, and the fake."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from runtime_node.server import Node
from tests.fakes.node_client import Subject, node_settings
from tests.fakes.runtime_node import Behaviour, FakeNode

MAX_INSTANCES = 8

BEHAVIOURS = {
    "behaviours:ready": Behaviour(),
    "behaviours:hangs_in_startup": Behaviour(ready_after=None),
    "behaviours:raises_in_startup": Behaviour(
        fails=("APP_STARTUP_FAILED", "RuntimeError: the startup is broken")
    ),
    "cannot_import:create_app": Behaviour(fails=("ENTRYPOINT_IMPORT_FAILED", "RuntimeError")),
    "no_such_module:create_app": Behaviour(fails=("ENTRYPOINT_MODULE_NOT_FOUND", "no_such_module")),
    "behaviours:slow_to_stop": Behaviour(stop_after=1.5),
}


@dataclass
class Tried(Subject):
    """A node whose data a test may make irremovable, by app id and uid, and removable again."""

    protect: Callable[[str, str], None]
    release: Callable[[str, str], None]


@pytest.fixture(params=["fake", "real"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Tried]:
    apps = tmp_path / "data" / "apps"

    def replace_by_link(app: str, uid: str) -> None:
        directory = apps / f"{app}.{uid}"
        directory.rename(tmp_path / uid)
        directory.symlink_to(tmp_path / uid)

    def remove_link(app: str, uid: str) -> None:
        (apps / f"{app}.{uid}").unlink()

    async with AsyncExitStack() as stack:
        drain: Callable[[], Any]
        if request.param == "fake":
            fake = FakeNode(behaviours=BEHAVIOURS, max_instances=MAX_INSTANCES)
            address = await fake.start()
            stack.push_async_callback(fake.kill)
            drain = fake.drain

            def protect(app: str, uid: str) -> None:
                fake.disk.stuck[uid] = "It cannot be removed."

            def release(app: str, uid: str) -> None:
                fake.disk.stuck.pop(uid, None)

            change = (protect, release)
        else:
            serving = Node(node_settings(tmp_path, max_instances=str(MAX_INSTANCES))).serving()
            real = await serving.__aenter__()
            ended: list[bool] = []

            async def end() -> None:
                if not ended:
                    ended.append(True)
                    await serving.__aexit__(None, None, None)

            stack.push_async_callback(end)
            address, drain = str(real.listen), end
            change = (replace_by_link, remove_link)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield Tried(RuntimeEnvironmentStub(channel), drain, *change)

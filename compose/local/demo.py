"""The two demo apps: created once through the API, and found as they were ever after."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.struct_pb2 import Struct

if TYPE_CHECKING:
    # Of the stubs alone: at run time both kinds are AppCatalogStub.
    from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogAsyncStub

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1 import runtime_environment_pb2 as runtime

CALL_TIMEOUT = 10.0
LOOK_AGAIN = 0.1


@dataclass(frozen=True, slots=True)
class Demo:
    """One demo app: its id, and what makes its page its own."""

    id: str
    title: str
    accent: str

    @property
    def name(self) -> str:
        """Resource name."""
        return f"apps/{self.id}"

    def request(self) -> catalog.CreateAppRequest:
        """Return the request that creates it."""
        config = Struct()
        config.update({"title": self.title, "accent": self.accent})
        app = catalog.App(display_name=self.title, entrypoint="notes:create_app", config=config)
        app.labels["demo"] = "notes"
        app.health_check.path = "/healthz"
        return catalog.CreateAppRequest(app_id=self.id, app=app)


DEMOS = (Demo("shop", "The shop's notes", "#2563eb"), Demo("blog", "The blog's notes", "#c2410c"))


async def create_missing(apps: AppCatalogAsyncStub, demos: Sequence[Demo] = DEMOS) -> None:
    """Create each demo app that never was; one that its user deleted stays away."""
    for demo in demos:
        events = catalog.ListAppEventsRequest(parent=demo.name, page_size=1)
        if await found(apps, demo) is None and not await _has_events(apps, events):
            try:
                await apps.CreateApp(demo.request(), timeout=CALL_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise


async def _has_events(apps: AppCatalogAsyncStub, request: catalog.ListAppEventsRequest) -> bool:
    try:
        return bool((await apps.ListAppEvents(request, timeout=CALL_TIMEOUT)).app_events)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise


async def found(apps: AppCatalogAsyncStub, demo: Demo) -> catalog.App | None:
    """Return the app as the catalog has it, or None."""
    try:
        return await apps.GetApp(catalog.GetAppRequest(name=demo.name), timeout=CALL_TIMEOUT)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


@dataclass(frozen=True, slots=True)
class Settled:
    """Where a demo app is, and how it is: the port of its node, and words for the user."""

    port: int
    words: str


async def settle(
    apps: AppCatalogAsyncStub, demo: Demo, host: str, ports: Mapping[str, int], timeout: float
) -> Settled:
    """Wait until the app answers over HTTP or has ended up otherwise.

    `ports` are those of the nodes' HTTP, by the nodes' resource names; the first one's is the usual.
    """
    port = next(iter(ports.values()))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        app = await found(apps, demo)
        if app is None:
            return Settled(port, "deleted, and left so")
        if app.desired_state == catalog.App.STOPPED and app.state == runtime.Instance.STOPPED:
            return Settled(port, "stopped, and left so: start it with StartApp")
        if app.state == runtime.Instance.FAILED and not app.reconciling:
            return Settled(port, f"FAILED: {_why(app)}")
        node = app.instances[0].node if app.instances else ""
        if node and node not in ports:
            return Settled(port, f"is on {node.rpartition('/')[2]}, which is not started")
        port = ports.get(node, port)
        if app.state in {runtime.Instance.RUNNING, runtime.Instance.IDLE} and await asyncio.to_thread(
            _answers, host, port, f"{demo.id}.localhost"
        ):
            return Settled(port, "answers")
        if loop.time() > deadline:
            state = runtime.Instance.State.Name(app.state)
            return Settled(port, f"{state} after {timeout:.0f} s: {_why(app) or 'see the log'}")
        await asyncio.sleep(LOOK_AGAIN)


def _why(app: catalog.App) -> str:
    unmet = [condition for condition in app.conditions if condition.status == runtime.Condition.UNMET]
    return "; ".join(f"{condition.reason}: {condition.message}" for condition in unmet)


def _answers(host: str, port: int, domain: str) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=CALL_TIMEOUT)
    try:
        connection.request("GET", "/healthz", headers={"Host": domain})
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

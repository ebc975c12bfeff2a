"""Two control planes on one PostgreSQL: any answers and writes, one leads, and the other takes over."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning.operations_pb2_grpc import OperationsStub

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.store import writer
from services.control_plane.store.sql import postgresql as postgresql_store
from services.control_plane.store.sql.postgresql import NotificationListener
from tests.eventually import eventually
from tests.integration.control_plane.plane import NODE, Plane
from tests.postgresql import Server


@pytest.fixture
def url(postgresql: Server) -> Any:
    with ExitStack() as stack:
        yield postgresql.create_database(stack)


@pytest.fixture
async def planes(url: str, tmp_path: Path) -> AsyncIterator[tuple[Plane, Plane]]:
    """The first one leads."""
    pair = Plane(tmp_path, url=url), Plane(tmp_path, url=url)
    try:
        await pair[0].start()
        await eventually(lambda: leads(pair[0]))
        await pair[1].start()
        yield pair
    finally:
        for plane in reversed(pair):
            await plane.close()


def leads(plane: Plane) -> bool:
    leadership = plane.running.leadership
    return leadership is not None and leadership.term is not None


async def test_what_is_written_at_one_is_read_and_waited_for_at_the_other(
    planes: tuple[Plane, Plane],
) -> None:
    one, other = planes
    await other.node()  # it joins by the one that does not lead
    for number in range(5):
        operation = await one.create(f"a{number}", wait=False)
        assert (await other.get(f"apps/a{number}")).name == f"apps/a{number}"
        assert (await other.done(operation)).state == rt.Instance.RUNNING
        operation = await other.create(f"b{number}", wait=False)
        assert (await one.done(operation)).state == rt.Instance.RUNNING
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await other.get("apps/none")
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_read_at_one_has_what_the_other_has_acknowledged_though_nobody_notifies_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(NotificationListener):
        """As behind a pooler: what others write is heard of by the poll alone."""

        def _listen(self, connection: Any) -> None:
            self._closed.wait()

    monkeypatch.setattr(postgresql_store, "NotificationListener", Deaf)
    monkeypatch.setattr(writer, "POLL_SECONDS", 3600.0)
    one, other = planes = Plane(tmp_path, url=url), Plane(tmp_path, url=url)
    try:
        await one.start()
        await other.start()
        for number in range(3):
            await one.create(f"a{number}", wait=False)
            listed = await other.apps.ListApps(pb.ListAppsRequest())
            assert [app.name for app in listed.apps] == [f"apps/a{n}" for n in range(number + 1)]
            update = pb.UpdateAppRequest(app=pb.App(name="apps/a0", display_name=f"Shop {number}"))
            update.update_mask.paths.append("display_name")
            await other.apps.UpdateApp(update)
            assert (await one.get("apps/a0")).display_name == f"Shop {number}"
        operation = await one.create("logged", wait=False)
        await other.get("apps/logged")  # it knows the app, and of no node that has it
        node = await one.node()
        logged = await one.done(operation)
        node.logs.add(logged.instances[0].name, logged.uid, "a line", rt.LogEntry.INFO)
        told = other.apps.TailAppLogs(pb.TailAppLogsRequest(name="apps/logged"))
        assert [entry.text async for message in told for entry in message.entries] == ["a line"]
    finally:
        for plane in reversed(planes):
            await plane.close()


async def test_a_watch_goes_on_at_the_other_with_the_token_of_one(planes: tuple[Plane, Plane]) -> None:
    seen: dict[str, int] = {}
    token = ""
    for number in range(12):
        await planes[number % 2].create(f"a{number}", wait=False)
        stream = planes[(number + 1) % 2].apps.WatchApps(pb.WatchAppsRequest(resume_token=token))
        async for message in stream:
            token = message.resume_token or token
            if message.type == pb.WatchAppsResponse.UPSERT:
                seen[message.app.name] = seen.get(message.app.name, 0) + 1
            if token and f"apps/a{number}" in seen:
                break
        stream.cancel()
    assert set(seen) == {f"apps/a{number}" for number in range(12)}


async def test_a_watch_of_events_goes_on_at_the_other_and_tells_each_event_once(
    planes: tuple[Plane, Plane],
) -> None:
    told: list[str] = []
    request = pb.WatchAppEventsRequest(parent="apps/-", tail_count=100)
    for number in range(6):
        name = f"apps/a{number}"
        await planes[number % 2].create(f"a{number}", wait=False)
        stream = planes[(number + 1) % 2].apps.WatchAppEvents(request)
        async for message in stream:
            if message.HasField("app_event"):
                told.append(message.app_event.name)
            if message.resume_token:
                request = pb.WatchAppEventsRequest(parent="apps/-", resume_token=message.resume_token)
                if any(event.startswith(f"{name}/") for event in told):
                    break
        stream.cancel()
    assert len(told) == len(set(told))
    created = {f"apps/a{number}" for number in range(6)}
    assert {event.partition("/events/")[0] for event in told} == created


async def test_figures_are_told_by_the_one_that_does_not_follow_the_node(
    planes: tuple[Plane, Plane],
) -> None:
    node = await planes[0].node()
    app = await planes[0].create("shop")
    node.set_figures(app.instances[0].name, rt.InstanceFigures(request_count=5))
    for plane in planes:
        # The other may not know yet that it runs.
        await plane.app("apps/shop", lambda app: [i.state for i in app.instances] == [rt.Instance.RUNNING])
        full = await plane.apps.GetApp(pb.GetAppRequest(name="apps/shop", view=pb.App.FULL))
        assert full.instances[0].figures.request_count == 5


async def test_the_log_of_an_app_is_read_at_the_one_that_does_not_follow_its_node(
    planes: tuple[Plane, Plane],
) -> None:
    node = await planes[0].node()
    app = await planes[0].create("shop")
    node.logs.add(app.instances[0].name, app.uid, "a line", rt.LogEntry.INFO)
    for plane in planes:
        request = pb.TailAppLogsRequest(name="apps/shop")
        lines = [entry.text async for message in plane.apps.TailAppLogs(request) for entry in message.entries]
        assert lines == ["a line"]


async def test_who_stops_hands_the_lead_over_and_no_app_is_touched(planes: tuple[Plane, Plane]) -> None:
    one, other = planes
    node = await one.node()
    await one.create("shop")
    calls = len([name for name, _ in node.calls if name != "WatchInstances"])
    await one.stop()
    await eventually(lambda: leads(other))
    assert (await other.create("late")).state == rt.Instance.RUNNING
    later = [name for name, _ in node.calls if name != "WatchInstances"][calls:]
    assert later.count("StartInstance") == 1
    assert "StopInstance" not in later
    assert (await other.get("apps/shop")).state == rt.Instance.RUNNING


class Process:
    """One control plane in a process of its own."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.control_plane", "--listen", "127.0.0.1:0",
            "--database-url", self._url, "--node-timeout", "1",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stderr is not None
        self.log: list[str] = []
        self._reader = asyncio.create_task(self._read(self._process.stderr))
        address = await eventually(lambda: re.search(r"serves gRPC on (\S+?),", "".join(self.log)))
        self.address = address.group(1)
        self.channel = grpc.aio.insecure_channel(self.address)
        self.apps: Any = AppCatalogStub(self.channel)
        self.fleet: Any = FleetStub(self.channel)
        self.operations: Any = OperationsStub(self.channel)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.log.append(line.decode())

    def leads(self) -> bool:
        return any("leads: term" in line for line in self.log)

    async def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        await self.channel.close()
        if self._process.returncode is None:
            self._process.send_signal(how)
        code = await self._process.wait()
        await self._reader
        return code


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_leader_that_is_killed_or_stands_still_is_replaced_and_commands_go_on(
    url: str, tmp_path: Path, how: signal.Signals
) -> None:
    first, second = Process(url), Plane(tmp_path, url=url)
    await first.start()
    try:
        await eventually(first.leads)
        await second.start()
        node = await second.node(NODE)
        await eventually(lambda: node.lease.held)
        term = node.lease.term
        assert (await second.create("before")).state == rt.Instance.RUNNING
        first._process.send_signal(how)
        operation = await second.create("during", wait=False)  # accepted at once, whoever leads
        assert (await second.get("apps/during")).name == "apps/during"
        await eventually(lambda: leads(second))
        assert (await second.done(operation)).state == rt.Instance.RUNNING
        if how is signal.SIGSTOP:
            first._process.send_signal(signal.SIGCONT)
            await eventually(lambda: any("leads no longer" in line for line in first.log))
            assert (await second.create("after")).state == rt.Instance.RUNNING
            assert leads(second)
        await eventually(lambda: node.lease.held and node.lease.term > term)
        assert [spec.name for spec in map(spec_of, node.calls) if spec.name.startswith("apps/before/")] == [
            "apps/before/instances/g1-e1"
        ]
    finally:
        await first.end()
        await second.close()


def spec_of(call: tuple[str, Any]) -> rt.InstanceSpec:
    """Return what a call to a node starts; nothing of another call."""
    method, request = call
    return request.spec if method == "StartInstance" else rt.InstanceSpec()


async def test_a_control_plane_on_postgresql_ends_cleanly(url: str) -> None:
    process = Process(url)
    await process.start()
    assert await process.end(signal.SIGTERM) == 0

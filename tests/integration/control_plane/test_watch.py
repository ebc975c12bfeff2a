"""WatchApps over real gRPC: complete, resumable, and nobody's reader holds up another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.catalog import queries, watching
from services.control_plane.operations.service import OperationService
from services.control_plane.rules.filters import compile_filter
from services.rpc.status import DETAILS_KEY, reason_of
from tests.eventually import WITHIN
from tests.integration.control_plane.plane import Plane, condition

Kind = pb.WatchAppsResponse


class Reader:
    def __init__(self, call: Any) -> None:
        self.call = call
        self.seen: list[pb.WatchAppsResponse] = []

    async def next(self) -> pb.WatchAppsResponse:
        message = await asyncio.wait_for(self.call.read(), WITHIN)
        assert isinstance(message, pb.WatchAppsResponse), await self.call.code()
        self.seen.append(message)
        return message

    async def to(self, kind: int, name: str = "") -> pb.WatchAppsResponse:
        """Read up to a message of a kind, about an app if one is named."""
        while True:
            message = await self.next()
            if message.type == kind and (not name or message.app.name == name):
                return message

    async def until_gone(self, name: str) -> dict[str, pb.App]:
        """Read until an app is told as gone; return the newest of each app."""
        await self.to(Kind.REMOVE, name)
        return self.newest()

    def newest(self) -> dict[str, pb.App]:
        apps: dict[str, pb.App] = {}
        for message in self.seen:
            if message.type == Kind.UPSERT:
                apps[message.app.name] = message.app
            elif message.type == Kind.REMOVE:
                apps.pop(message.app.name, None)
        return apps


@asynccontextmanager
async def watch(plane: Plane, **fields: str) -> AsyncIterator[Reader]:
    call = plane.apps.WatchApps(pb.WatchAppsRequest(**fields))
    try:
        yield Reader(call)
    finally:
        call.cancel()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bookmarks come after a tenth of a second."""
    monkeypatch.setattr(watching, "BOOKMARK_SECONDS", 0.1)


async def make(plane: Plane, *names: str, **fields: Any) -> None:
    """Create apps that are to be stopped, and wait until nothing more is to be told of them."""
    for name in names:
        await plane.create(name, wait=False, desired_state=pb.App.STOPPED, **fields)
    for name in names:
        await plane.app(f"apps/{name}", lambda app: condition(app, "Ready").reason == "Stopped")


async def test_a_stream_tells_a_snapshot_then_synced_then_changes_then_bookmarks(
    plane: Plane, soon: None
) -> None:
    await make(plane, "a", "b")
    async with watch(plane) as reader:
        synced = await reader.to(Kind.SYNCED)
        assert [m.app.name for m in reader.seen[:-1]] == ["apps/a", "apps/b"]
        assert all(not m.resume_token for m in reader.seen[:-1])
        assert synced.resume_token
        await make(plane, "c")
        change = await reader.to(Kind.UPSERT)
        assert change.app.name == "apps/c"
        assert change.revision > synced.revision
        assert change.resume_token
        bookmark = await reader.to(Kind.BOOKMARK)
        assert bookmark.revision >= change.revision
        assert bookmark.resume_token


async def test_a_stream_resumes_exactly_after_its_token_over_a_restart(plane: Plane) -> None:
    await make(plane, "a", "b", "c")
    async with watch(plane) as reader:
        token = (await reader.to(Kind.SYNCED)).resume_token
    await make(plane, "d")
    await plane.update("apps/a", ["labels"], labels={"x": "1"})
    await plane.done(await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/b")))
    for restarted in (False, True):
        if restarted:
            await plane.restart()
        async with watch(plane, resume_token=token) as reader:
            await reader.to(Kind.SYNCED)
            told = [(m.type, m.app.name) for m in reader.seen[:-1]]
            assert sorted(told, key=lambda m: m[1]) == [
                (Kind.UPSERT, "apps/a"),
                (Kind.REMOVE, "apps/b"),
                (Kind.UPSERT, "apps/d"),
            ]
            revisions = [m.revision for m in reader.seen]
            assert revisions == sorted(revisions)
            middle = reader.seen[0]
        async with watch(plane, resume_token=middle.resume_token) as reader:
            await reader.to(Kind.SYNCED)
            assert [m.app.name for m in reader.seen[:-1]] == [name for _, name in told[1:]]


async def test_an_app_that_no_longer_matches_is_told_as_gone(plane: Plane) -> None:
    await make(plane, "a", "b", labels={"tier": "gold"})
    await make(plane, "z")
    filter = 'labels.tier = "gold"'
    async with watch(plane, filter=filter) as reader:
        token = (await reader.to(Kind.SYNCED)).resume_token
        assert set(reader.newest()) == {"apps/a", "apps/b"}
        await plane.update("apps/a", ["labels"], labels={"tier": "tin"})
        gone = await reader.to(Kind.REMOVE)
        assert gone.app == pb.App(name="apps/a")
        await plane.update("apps/z", ["labels"], labels={"tier": "iron"})
        await plane.update("apps/a", ["labels"], labels={"tier": "gold"})
        back = await reader.next()  # of apps/z nothing is told: it was never there
        assert (back.type, back.app.name) == (Kind.UPSERT, "apps/a")
    await plane.update("apps/b", ["labels"], labels={"tier": "tin"})
    async with watch(plane, filter=filter, resume_token=token) as reader:
        await reader.to(Kind.SYNCED)
        assert (Kind.REMOVE, "apps/b") in [(m.type, m.app.name) for m in reader.seen]


async def test_a_resumed_reader_is_told_once_that_an_app_is_none_of_its_own(plane: Plane, soon: None) -> None:
    filter = 'labels.tier = "gold"'
    async with watch(plane, filter=filter) as reader:
        token = (await reader.to(Kind.SYNCED)).resume_token
    await make(plane, "z")
    async with watch(plane, filter=filter, resume_token=token) as reader:
        await reader.to(Kind.SYNCED)
        for n in range(5):
            await plane.update("apps/z", ["labels"], labels={"n": str(n)})
        await make(plane, "gold", labels={"tier": "gold"})
        await reader.to(Kind.UPSERT)
        assert [m.app.name for m in reader.seen if m.type == Kind.REMOVE] == ["apps/z"]


def test_a_resumed_reader_keeps_nothing_of_apps_that_come_and_go() -> None:
    view = queries._FilteredView(compile_filter('labels.tier = "gold"'), resumed=True)
    for n in range(100):
        app = pb.App(name=f"apps/a{n}")
        assert not view.shows(app)
        assert view.loses(app.name, removed=False)
        assert not view.loses(app.name, removed=True)
    assert view._gone == view._shown == set()


async def test_a_reader_whom_no_change_concerns_gets_bookmarks_that_move_on(plane: Plane, soon: None) -> None:
    await make(plane, "z")
    async with watch(plane, filter='labels.tier = "gold"') as reader:
        first = await reader.to(Kind.SYNCED)

        async def busy() -> None:
            for n in range(10_000):
                await plane.update("apps/z", ["labels"], labels={"n": str(n)})

        task = asyncio.create_task(busy())
        try:
            revisions = [first.revision]
            while len(set(revisions)) < 4:  # while the writer has no turn, one repeats the one before
                revisions.append((await reader.to(Kind.BOOKMARK)).revision)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert sorted(revisions) == revisions


async def test_tokens_that_cannot_be_resumed_are_refused_with_their_reason(plane: Plane) -> None:
    async with watch(plane) as reader:
        token = (await reader.to(Kind.SYNCED)).resume_token
    for fields, reason in (
        ({"resume_token": "nonsense"}, "INVALID_RESUME_TOKEN"),
        ({"resume_token": token, "filter": "state = RUNNING"}, "INVALID_RESUME_TOKEN"),
        ({"filter": "state ="}, "INVALID_FILTER"),
    ):
        async with watch(plane, **fields) as reader:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await reader.call.read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert reason_of(refused.value) == reason


async def test_a_token_the_log_no_longer_covers_is_refused_with_the_oldest_revision(plane: Plane) -> None:
    async with watch(plane) as reader:
        token = (await reader.to(Kind.SYNCED)).resume_token
    await make(plane, "a")
    feed = plane.store.mirror.apps
    feed._oldest = feed.revision
    async with watch(plane, resume_token=token) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as expired:
            await reader.call.read()
        assert expired.value.code() is grpc.StatusCode.OUT_OF_RANGE
        packed = dict(expired.value.trailing_metadata() or ())[DETAILS_KEY]
        info = ErrorInfo()
        assert Status.FromString(packed).details[0].Unpack(info)
        assert info.reason == "RESUME_TOKEN_EXPIRED"
        assert int(info.metadata["oldest_revision"]) == feed.revision


async def test_a_hundred_readers_see_the_newest_of_everything_and_a_slow_one_delays_none(
    plane: Plane,
) -> None:
    await make(plane, *(f"a{n}" for n in range(20)))
    slow_call = plane.apps.WatchApps(pb.WatchAppsRequest())
    slow = Reader(slow_call)
    await slow.next()  # and then reads no more
    readers = [Reader(plane.apps.WatchApps(pb.WatchAppsRequest())) for _ in range(100)]
    for reader in readers:
        await reader.to(Kind.SYNCED)
    big = {"k": "v" * 20_000}
    for n in range(100):
        name = f"apps/a{n % 20}"
        await plane.update(name, ["annotations", "labels"], annotations=big, labels={"n": str(n)})
    await make(plane, "last")
    await plane.done(await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/last")))
    for reader in readers:
        apps = await reader.until_gone("apps/last")
        assert {app.labels["n"] for app in apps.values()} == {str(n) for n in range(80, 100)}
        reader.call.cancel()
    apps = await slow.until_gone("apps/last")
    assert {app.labels["n"] for app in apps.values()} == {str(n) for n in range(80, 100)}
    slow_call.cancel()


@pytest.mark.parametrize("plane", [{"drain_timeout": 300}], indirect=True)
async def test_a_shutdown_sends_readers_and_waiters_off_at_once(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, wait = asyncio.Event(), OperationService.wait

    async def noted(service: OperationService, *arguments: Any) -> Any:
        waits.set()
        return await wait(service, *arguments)

    monkeypatch.setattr(OperationService, "wait", noted)
    operation = await plane.create("shop", wait=False)
    reader = Reader(plane.apps.WatchApps(pb.WatchAppsRequest()))
    await reader.to(Kind.SYNCED)
    waiting = asyncio.ensure_future(plane.wait(operation))
    health = HealthStub(plane.channel)
    checks = [health.Watch(HealthCheckRequest(service=name)) for name in ("", "apps/shop")]
    for check in checks:
        await check.read()
    await asyncio.wait_for(waits.wait(), WITHIN)
    closing = asyncio.create_task(plane.running.close())
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await reader.to(Kind.REMOVE)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(ended.value) == "SHUTTING_DOWN"
    assert not (await waiting).done
    assert (await checks[0].read()).status == HealthCheckResponse.NOT_SERVING
    assert [await check.read() for check in checks] == [grpc.aio.EOF, grpc.aio.EOF]
    await asyncio.wait_for(closing, WITHIN)
    plane._running = None
    await plane.channel.close()


async def test_secrets_are_not_in_what_watchers_see(plane: Plane) -> None:
    await plane.node()
    async with watch(plane) as reader:
        await reader.to(Kind.SYNCED)
        await plane.create("shop", secret_env={"TOKEN": "canary-4711"})
        while True:
            if (await reader.next()).app.state == rt.Instance.RUNNING:
                break
        assert all(b"canary-4711" not in m.SerializeToString() for m in reader.seen)

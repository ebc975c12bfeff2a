"""WatchAppEvents over real gRPC: each event once and in order, exactly resumable, never missed in silence."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.catalog import timelines
from services.control_plane.store.interface import Transaction
from services.control_plane.store.sql.pruning import Bounds
from services.rpc.status import reason_of
from tests.eventually import WITHIN
from tests.integration.control_plane.plane import Plane

Kind = pb.WatchAppEventsResponse


class Reader:
    def __init__(self, call: Any) -> None:
        self.call = call

    async def next(self) -> pb.WatchAppEventsResponse:
        message = await asyncio.wait_for(self.call.read(), WITHIN)
        assert isinstance(message, pb.WatchAppEventsResponse), await self.call.code()
        return message

    async def to(self, kind: int) -> list[pb.WatchAppEventsResponse]:
        """Read up to a message of a kind; return all up to it."""
        seen = [await self.next()]
        while seen[-1].type != kind:
            seen.append(await self.next())
        return seen

    async def told(self, count: int) -> list[str]:
        """Return the next so many events' messages, whatever comes between."""
        found: list[str] = []
        while len(found) < count:
            message = await self.next()
            if message.type == Kind.EVENT:
                found.append(message.app_event.message)
        return found


@asynccontextmanager
async def watch(plane: Plane, parent: str = "apps/-", **fields: Any) -> AsyncIterator[Reader]:
    call = plane.apps.WatchAppEvents(pb.WatchAppEventsRequest(parent=parent, **fields))
    try:
        yield Reader(call)
    finally:
        call.cancel()


async def happen(plane: Plane, app: str, *messages: str, kind: str = "Happened", actor: str = "me") -> None:
    """Add events, all in one revision."""

    def command(tx: Transaction) -> None:
        for message in messages:
            tx.add_event(app, pb.AppEvent(type=kind, message=message, actor=actor))

    await asyncio.wrap_future(plane.store.write(command))


def messages(told: list[pb.WatchAppEventsResponse]) -> list[str]:
    return [message.app_event.message for message in told if message.type == Kind.EVENT]


async def test_a_stream_tells_the_newest_then_synced_then_each_event_then_bookmarks(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timelines, "BOOKMARK_SECONDS", 0.1)
    await happen(plane, "apps/a", "1", "2", "3")
    await happen(plane, "apps/b", "4")
    async with watch(plane, tail_count=3) as reader, watch(plane, "apps/a", tail_count=2) as one:
        before = await reader.to(Kind.SYNCED)
        assert messages(before) == ["2", "3", "4"]
        assert [bool(message.resume_token) for message in before] == [False, False, False, True]
        assert messages(await one.to(Kind.SYNCED)) == ["2", "3"]
        await happen(plane, "apps/b", "5")
        await happen(plane, "apps/a", "6")
        assert await reader.told(2) == ["5", "6"]
        assert await one.told(1) == ["6"]
        bookmark = (await reader.to(Kind.BOOKMARK))[-1]
        assert bookmark.resume_token
    async with watch(plane) as nothing:
        assert messages(await nothing.to(Kind.SYNCED)) == []


async def test_what_an_operation_does_is_told_as_it_happens(plane: Plane) -> None:
    await plane.node()
    async with watch(plane, "apps/shop") as reader:
        await reader.to(Kind.SYNCED)
        await plane.create("shop")
        kinds = []
        while "StateChanged" not in kinds:
            kinds += [message.app_event.type for message in await reader.to(Kind.EVENT)][-1:]
        assert kinds[:2] == ["Created", "Placed"]


async def test_a_stream_resumes_exactly_after_each_token_also_amid_a_revision_and_over_a_restart(
    plane: Plane,
) -> None:
    async with watch(plane) as reader:
        synced = (await reader.to(Kind.SYNCED))[-1]
        await happen(plane, "apps/a", "1", "2", "3")
        await happen(plane, "apps/b", "4")
        told = [synced, *(await reader.to(Kind.EVENT)), *[await reader.next() for _ in range(3)]]
    assert messages(told) == ["1", "2", "3", "4"]
    for restarted in (False, True):
        if restarted:
            await plane.restart()
        for number, message in enumerate(told):
            async with watch(plane, resume_token=message.resume_token) as again:
                assert messages(await again.to(Kind.SYNCED)) == ["1", "2", "3", "4"][number:]


async def test_a_filter_selects_and_its_token_goes_with_it(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timelines, "BOOKMARK_SECONDS", 0.1)
    wanted = 'actor = "me" AND type = "Broke"'
    await happen(plane, "apps/a", "no")
    await happen(plane, "apps/a", "1", kind="Broke")
    async with watch(plane, filter=wanted, tail_count=10) as reader:
        synced = await reader.to(Kind.SYNCED)
        assert messages(synced) == ["1"]
        await happen(plane, "apps/a", "other", kind="Broke", actor="you")
        await happen(plane, "apps/b", "2", kind="Broke")
        assert await reader.told(1) == ["2"]
    token = synced[-1].resume_token
    for fields in ({"filter": "", "resume_token": token}, {"filter": "nothing = 1"}):
        async with watch(plane, **fields) as refused:
            assert await refusal(refused) in ("INVALID_RESUME_TOKEN", "INVALID_FILTER")
    async with watch(plane, filter="app = apps/b", tail_count=5) as one:
        assert messages(await one.to(Kind.SYNCED)) == ["2"]


async def refusal(reader: Reader) -> str:
    """Read until the stream is refused; return the reason."""
    try:
        while await asyncio.wait_for(reader.call.read(), WITHIN) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as refused:
        return reason_of(refused)
    return ""


@pytest.mark.parametrize(
    "fields",
    [{"parent": "a"}, {"tail_count": -1}, {"tail_count": 1001}, {"tail_count": 1, "resume_token": "x"}],
)
async def test_what_cannot_be_meant_is_refused(plane: Plane, fields: dict[str, Any]) -> None:
    async with watch(plane, **fields) as reader:
        assert await refusal(reader) == "INVALID_FIELD"


async def test_a_reader_behind_which_events_were_forgotten_is_told_so(plane: Plane) -> None:
    async with watch(plane) as reader, watch(plane, "apps/quiet") as quiet:
        token = (await reader.to(Kind.SYNCED))[-1].resume_token
        quiet_token = (await quiet.to(Kind.SYNCED))[-1].resume_token
    plane.store._bounds = Bounds(events=3)  # type: ignore[attr-defined]
    await happen(plane, "apps/busy", *map(str, range(10)))
    await happen(plane, "apps/quiet", "here")
    await asyncio.to_thread(plane.store.prune)
    async with watch(plane, resume_token=token) as late:
        assert await refusal(late) == "RESUME_TOKEN_EXPIRED"
    async with watch(plane, "apps/quiet", resume_token=quiet_token) as unharmed:
        assert messages(await unharmed.to(Kind.SYNCED)) == ["here"]


async def test_a_slow_reader_gets_every_event_and_holds_up_nobody(plane: Plane) -> None:
    async with watch(plane) as slow, watch(plane) as quick:
        await slow.to(Kind.SYNCED)
        await quick.to(Kind.SYNCED)
        wanted = []
        for start in range(0, 2_000, 100):
            some = [f"{number} {'x' * 2_000}" for number in range(start, start + 100)]
            wanted += some
            await happen(plane, f"apps/a{start}", *some)
        assert await quick.told(2_000) == wanted
        assert await slow.told(2_000) == wanted


async def test_a_shutdown_sends_the_watchers_off(plane: Plane) -> None:
    async with watch(plane) as reader:
        await reader.to(Kind.SYNCED)
        stopping = asyncio.create_task(plane.running.close())
        assert await refusal(reader) == "SHUTTING_DOWN"
        await stopping

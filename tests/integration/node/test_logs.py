"""App logs on a real node, in each tier: attributed, bounded, followed, resumed, kept and removed."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from runtime_node.logs import tail, writer
from runtime_node.logs.echo import echo_to_log
from runtime_node.logs.entries import Entry
from runtime_node.logs.files import AppLog
from runtime_node.tiers.process.zygote import Zygote
from services.rpc.status import reason_of
from tests.eventually import eventually
from tests.fakes.node_client import APPS, DEADLINE
from tests.integration.node.conftest import Hosted, hosting

Kind = pb.TailLogsResponse
TIERS = ["SHARED", "THREAD", "PROCESS"]
CANARY = "canary-value-123"


@asynccontextmanager
async def node(directory: Path, tier: str = "SHARED", **flags: str) -> AsyncIterator[Hosted]:
    """Run a node within the test itself: pytest exchanges the standard streams before and after it."""
    zygote = Zygote.launch([APPS], preload=[]) if tier == "PROCESS" else None
    async with hosting(directory, zygote, **flags) as hosted:
        if zygote is not None:
            await zygote.ready()
        yield hosted


async def talking(hosted: Hosted, tier: str, app: str = "shop", **fields: Any) -> str:
    name = f"apps/{app}/instances/a1"
    fields = {"app_uid": f"uid-{app}", "isolation": pb.InstanceSpec.IsolationTier.Value(tier), **fields}
    await hosted.start(hosted.spec(name, entrypoint="talkers:create_app", **fields))
    await hosted.reaches(pb.Instance.RUNNING, name)
    return name


async def told(hosted: Hosted, app: str = "shop", **fields: Any) -> list[pb.TailLogsResponse]:
    """Return all that a stream without follow tells."""
    call = hosted.stub.TailLogs(pb.TailLogsRequest(name=f"apps/{app}", **fields))
    return [message async for message in call]


async def lines(hosted: Hosted, app: str = "shop", **fields: Any) -> list[pb.LogEntry]:
    return [entry for message in await told(hosted, app, **fields) for entry in message.entries]


async def until_told(hosted: Hosted, text: str, app: str = "shop") -> list[pb.LogEntry]:
    return await eventually(
        lambda: lines(hosted, app), lambda found: any(text in entry.text for entry in found), within=DEADLINE
    )


class Follower:
    """A stream that is followed, with all it has told."""

    def __init__(self, hosted: Hosted, app: str = "shop", **fields: Any) -> None:
        request = pb.TailLogsRequest(name=f"apps/{app}", follow=True, **fields)
        self.call = hosted.stub.TailLogs(request)
        self.entries: list[pb.LogEntry] = []
        self.seen: list[pb.TailLogsResponse] = []

    async def next(self) -> Any:
        message = await asyncio.wait_for(self.call.read(), DEADLINE)
        if isinstance(message, pb.TailLogsResponse):
            self.seen.append(message)
            self.entries += message.entries
            return message
        return None

    async def until(self, text: str) -> pb.LogEntry:
        while True:
            for entry in self.entries:
                if text in entry.text:
                    return entry
            assert await self.next() is not None, "the stream ended"

    @property
    def token(self) -> str:
        return self.seen[-1].resume_token


@pytest.mark.parametrize("tier", TIERS)
async def test_all_that_an_app_says_is_its_own(tmp_path, tier, capfd):
    async with node(tmp_path, tier) as hosted:
        await talking(hosted, tier)
        for path in ("print", "stderr", "log", "thread", "bytes"):
            assert (await hosted.ask("shop", f"/{path}?text=word-{path}")).status_code == 200
        assert (await hosted.ask("shop", "/raise?text=word-raise")).status_code == 500
        # What it wrote on one stream may be read before what it wrote on another earlier.
        wanted = {"word-stderr", "word-thread", "word-bytes", "failed", "RuntimeError: word-raise"}
        found = await eventually(
            lambda: lines(hosted),
            lambda found: all(any(text in entry.text for entry in found) for text in wanted),
        )
    by_text = {entry.text.splitlines()[0]: entry for entry in found}
    for text, level, source in (
        ("imported", pb.LogEntry.INFO, "stdout"),
        ("made apps/shop/instances/a1", pb.LogEntry.INFO, "stdout"),
        ("starting", pb.LogEntry.INFO, "stdout"),
        ("word-print", pb.LogEntry.INFO, "stdout"),
        ("word-stderr", pb.LogEntry.WARNING, "stderr"),
        ("debug word-log", pb.LogEntry.VERBOSE, "app.shop"),
        ("info word-log", pb.LogEntry.INFO, "app.shop"),
        ("library word-log", pb.LogEntry.WARNING, "library.shop"),
        ("failed", pb.LogEntry.SEVERE, "library.shop"),
        ("word-thread", pb.LogEntry.INFO, "stdout"),
        ("word-bytes", pb.LogEntry.INFO, "stdout"),
    ):
        assert (by_text[text].level, by_text[text].source) == (level, source), text
    assert all(entry.instance == "apps/shop/instances/a1" for entry in found)
    assert [entry.cursor for entry in found] == list(range(1, len(found) + 1))
    assert "ValueError: word-log" in by_text["failed"].text
    # None of it is in the node's own log.
    output = capfd.readouterr()
    assert "word-" not in output.out + output.err


@pytest.mark.parametrize("tier", ["SHARED", "THREAD"])
async def test_what_has_no_end_of_line_is_told_all_the_same(tmp_path, tier):
    async with node(tmp_path, tier) as hosted:
        await talking(hosted, tier)
        await hosted.ask("shop", "/partial?text=50-percent")
        assert (await until_told(hosted, "50-percent"))[-1].text == "50-percent"


@pytest.mark.parametrize("tier", TIERS)
async def test_a_secret_is_in_no_entry_and_not_on_the_disk(tmp_path, tier):
    async with node(tmp_path, tier) as hosted:
        await talking(hosted, tier, secret_env={"TOKEN": CANARY})
        await hosted.ask("shop", "/secrets")
        found = await until_told(hosted, "logged ***")
        assert not any(CANARY in entry.text for entry in found)
        assert any("plain ***" in entry.text for entry in found)
        assert max(len(entry.text.encode()) for entry in found) <= 16 * 1024
        stored = b"".join(path.read_bytes() for path in (tmp_path / "data" / "logs").rglob("*.log"))
    assert b"plain ***" in stored
    for size in range(5, len(CANARY) + 1):
        assert CANARY[:size].encode() not in stored
        assert CANARY[-size:].encode() not in stored


async def test_the_last_words_of_a_segfaulting_guest_are_kept(tmp_path):
    async with node(tmp_path, "PROCESS") as hosted:
        await talking(hosted, "PROCESS")
        answer = await hosted.ask("shop", "/segfault")
        assert answer.status_code >= 500
        found = await until_told(hosted, "Segmentation fault")
        assert all(entry.level == pb.LogEntry.WARNING for entry in found if "Fatal" in entry.text)


@pytest.mark.parametrize("tier", TIERS)
async def test_a_flood_is_cut_and_counted_and_its_neighbour_is_served(tmp_path, tier, monkeypatch):
    monkeypatch.setattr(writer, "WINDOW_SECONDS", 0.5)
    monkeypatch.setattr(writer, "LINES_PER_WINDOW", 1000)
    async with node(tmp_path, tier) as hosted:
        await talking(hosted, tier)
        await talking(hosted, tier, app="calm")
        asked = count = 0

        async def flood() -> None:
            # In pieces, for one long request would block the loop it shares; 100 if nobody else is served.
            nonlocal count
            while count < 12_000 or (asked < 2 and count < 120_000):
                await hosted.ask("shop", "/many?text=flood&count=1200")
                count += 1_200

        flooding = asyncio.create_task(flood())
        while not flooding.done():
            # Answered between two pieces of the flood: after one, or it would be answered at its end alone.
            assert (await hosted.ask("calm", f"/print?text=calm-{asked}")).status_code == 200
            asked += 1
        await flooding
        assert asked > 1
        await hosted.ask("shop", "/print?text=the-end")

        def told_of(found: list[pb.LogEntry]) -> int:
            """Return how many lines were kept, were dropped and told of, or went with an older file."""
            kept = sum("flood" in entry.text for entry in found)
            return kept + sum(entry.dropped_count for entry in found) + found[0].cursor - 1

        found = await eventually(
            lambda: lines(hosted),
            lambda found: (
                told_of(found) >= count and not (found[-1].dropped_count and "flood" in found[-1].text)
            ),
        )
        assert sum(entry.dropped_count for entry in found) > 0
        assert [e.cursor for e in found] == list(range(found[0].cursor, found[0].cursor + len(found)))
        calm = [entry.text for entry in await until_told(hosted, f"calm-{asked - 1}", "calm")]
        assert [text for text in calm if text.startswith("calm-")] == [f"calm-{n}" for n in range(asked)]
        size = sum(path.stat().st_size for path in (tmp_path / "data" / "logs").rglob("*.log"))
        assert size < 6 << 20


async def test_a_follower_hears_at_once_and_resumes_exactly(tmp_path):
    async with node(tmp_path) as hosted:
        await talking(hosted, "SHARED")
        first = Follower(hosted)
        await first.until("starting")
        heard = []
        for round_number in range(5):
            await hosted.ask("shop", f"/many?text=r{round_number}&count=10")
            await first.until(f"r{round_number} 9")
            # Broken off at a random place, and gone on with from the last word.
            heard += first.entries
            token = first.token
            first.call.cancel()
            await hosted.ask("shop", f"/many?text=between{round_number}&count=3")
            first = Follower(hosted, resume_token=token)
        await first.until("between4 2")
        heard += first.entries
        first.call.cancel()
        assert [entry.cursor for entry in heard] == list(range(1, heard[-1].cursor + 1))
        assert heard == await lines(hosted)


@pytest.mark.parametrize("tier", ["SHARED", "PROCESS"])
async def test_a_follower_hears_of_a_loss_while_a_flood_goes_on(tmp_path, tier, monkeypatch):
    monkeypatch.setattr(writer, "LINES_PER_WINDOW", 100)
    monkeypatch.setattr(writer, "WINDOW_SECONDS", 3600)
    async with node(tmp_path, tier) as hosted:
        await talking(hosted, tier)
        follower = Follower(hosted)
        await follower.until("starting")
        await hosted.ask("shop", "/many?text=flood&count=300")
        while sum(entry.dropped_count for entry in follower.entries) < 201:
            await follower.next()
        first = next(i for i, entry in enumerate(follower.entries) if entry.dropped_count)
        assert "flood" in follower.entries[first - 1].text
        follower.call.cancel()


async def test_a_follower_hears_of_lines_that_a_full_disk_does_not_take(tmp_path, monkeypatch):
    async with node(tmp_path) as hosted:
        await talking(hosted, "SHARED")
        follower = Follower(hosted)
        await follower.until("starting")
        before = follower.entries[-1].cursor
        with monkeypatch.context() as full:

            def refuse(self: AppLog, lines: list[bytes]) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            full.setattr(AppLog, "_write", refuse)
            for number in range(3):
                await hosted.ask("shop", f"/print?text=lost-{number}")
                while sum(m.dropped_count for m in follower.seen if m.type == Kind.GAP) <= number:
                    await follower.next()
            # Who comes meanwhile is told, too.
            late = Follower(hosted, tail_line_count=0)
            while not any(m.type == Kind.GAP for m in late.seen):
                await late.next()
        await hosted.ask("shop", "/print?text=kept")
        await follower.until("kept")
        await late.until("kept")
        assert sum(m.dropped_count for m in follower.seen if m.type == Kind.GAP) == 3
        assert sum(m.dropped_count for m in late.seen if m.type == Kind.GAP) == 3
        # Told already: the entry that tells of them comes to those alone who were not there.
        assert not any(entry.dropped_count for entry in (*follower.entries, *late.entries))
        after = [entry for entry in await lines(hosted) if entry.cursor > before]
        assert [entry.dropped_count for entry in after] == [3, 0]
        assert follower.entries[-1].cursor == late.entries[-1].cursor == after[-1].cursor
        follower.call.cancel()
        late.call.cancel()


async def test_of_what_there_is_only_what_was_asked_for_is_told(tmp_path):
    async with node(tmp_path) as hosted:
        await talking(hosted, "SHARED")
        for number in range(5):
            await hosted.ask("shop", f"/log?text=n{number}")
        everything = await lines(hosted)
        assert [e.text for e in await lines(hosted, tail_line_count=2)] == [e.text for e in everything[-2:]]
        assert await lines(hosted, tail_line_count=0) == []
        graver = await lines(hosted, min_level=pb.LogEntry.SEVERE)
        assert len(graver) == 5
        assert {entry.level for entry in graver} == {pb.LogEntry.SEVERE}
        since = await lines(hosted, start_time=everything[-3].log_time)
        assert since == everything[-len(since) :]
        assert 3 <= len(since) < len(everything)
        assert await lines(hosted, instance="apps/shop/instances/other") == []
        assert [m.type for m in await told(hosted)][-1] == Kind.SYNCED


async def test_a_follower_of_an_instance_hears_its_last_word_and_then_the_end(tmp_path):
    async with node(tmp_path) as hosted:
        name = await talking(hosted, "SHARED")
        follower = Follower(hosted, instance=name)
        await follower.until("starting")
        await hosted.stop(name)
        while await follower.next() is not None:
            pass
        assert follower.entries[-1].text == "stopping"
        assert await follower.call.code() == grpc.StatusCode.OK


async def test_a_follower_of_an_app_stays_over_a_change_of_instances(tmp_path):
    async with node(tmp_path) as hosted:
        await talking(hosted, "SHARED")
        follower = Follower(hosted)
        await follower.until("starting")
        second = "apps/shop/instances/a2"
        spec = hosted.spec(second, entrypoint="talkers:create_app", app_uid="uid-shop", generation=2)
        await hosted.start(spec)
        await follower.until("made apps/shop/instances/a2")
        await hosted.stop("apps/shop/instances/a1")
        stopping = await follower.until("stopping")
        assert stopping.instance == "apps/shop/instances/a1"
        await hosted.reaches(pb.Instance.RUNNING, second)
        await hosted.ask("shop", "/print?text=still-followed")
        assert (await follower.until("still-followed")).instance == second
        follower.call.cancel()


async def test_logs_outlive_the_node_and_its_cursors_go_on(tmp_path):
    async with node(tmp_path) as hosted:
        name = await talking(hosted, "SHARED")
        await hosted.ask("shop", "/print?text=before")
        token = (await told(hosted))[-1].resume_token
        await hosted.stop(name)
        await hosted.is_gone(name)
    async with node(tmp_path) as hosted:
        # Nothing runs here yet, and what was said can be read all the same.
        assert "before" in [entry.text for entry in await lines(hosted)]
        await talking(hosted, "SHARED")
        await hosted.ask("shop", "/print?text=after")
        messages = await told(hosted, resume_token=token)
        assert Kind.GAP not in [message.type for message in messages]
        rest = [entry for message in messages for entry in message.entries]
        assert rest[0].text == "stopping"
        assert rest[-1].text == "after"
        assert [entry.cursor for entry in rest] == list(range(rest[0].cursor, rest[-1].cursor + 1))
        assert rest[0].cursor == int(token.partition(".")[2]) + 1


async def test_what_was_not_kept_is_told_as_a_gap(tmp_path):
    async with node(tmp_path) as hosted:
        await talking(hosted, "SHARED")
        hosted.node.telemetry.logs._accounts["shop", "uid-shop"].log._max_file_bytes = 2_000
        token = (await told(hosted))[-1].resume_token
        for number in range(10):
            await hosted.ask("shop", f"/many?text=fill{number}&count=60")
        messages = await told(hosted, resume_token=token)
        assert messages[0].type == Kind.GAP
        found = [entry for message in messages for entry in message.entries]
        assert found[0].cursor == int(token.partition(".")[2]) + messages[0].dropped_count + 1
        assert (await told(hosted, resume_token=messages[0].resume_token))[0].type == Kind.ENTRIES
        # A token of another log: how much is missing cannot be known.
        strange = await told(hosted, resume_token="0123abcd.5")
        assert strange[0].type == Kind.GAP
        assert strange[0].dropped_count == 0
        assert next(e.cursor for m in strange for e in m.entries) == found[0].cursor


async def test_a_purge_removes_the_log_and_ends_its_followers(tmp_path):
    async with node(tmp_path) as hosted:
        name = await talking(hosted, "SHARED")
        follower = Follower(hosted)
        await follower.until("starting")
        await hosted.stop(name, purge_data=True, app_uid="uid-shop")
        while await follower.next() is not None:
            pass
        assert await follower.call.code() == grpc.StatusCode.OK
        assert not [*(tmp_path / "data" / "logs").iterdir()]
        await hosted.is_gone(name)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await told(hosted)
        assert reason_of(refused.value) == "APP_NOT_FOUND"


async def test_followers_are_sent_off_when_the_node_shuts_down(tmp_path):
    async with node(tmp_path) as hosted:
        await talking(hosted, "SHARED")
        # Of its own, so that it outlives the fixture's.
        channel = grpc.aio.insecure_channel(str(hosted.node.listen))
        hosted.stub = RuntimeEnvironmentStub(channel)
        follower = Follower(hosted)
        await follower.until("starting")

        async def rest() -> None:
            while await follower.next() is not None:
                pass

        reading = asyncio.create_task(rest())
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await reading
    await channel.close()
    assert (ended.value.code(), reason_of(ended.value)) == (grpc.StatusCode.UNAVAILABLE, "NODE_DRAINING")
    assert follower.entries[-1].text == "stopping"


async def test_an_idle_follower_is_told_that_nothing_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "BOOKMARK_SECONDS", 0.05)
    async with node(tmp_path) as hosted:
        await talking(hosted, "SHARED")
        follower = Follower(hosted, min_level=pb.LogEntry.CRITICAL)
        while (await follower.next()).type != Kind.SYNCED:
            pass
        await hosted.ask("shop", "/print?text=not-grave")
        while not follower.token.endswith(f".{(await lines(hosted))[-1].cursor}"):
            assert (await follower.next()).type == Kind.BOOKMARK
        follower.call.cancel()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "shop"}, "INVALID_FIELD"),
        ({"name": "apps/-"}, "INVALID_FIELD"),
        ({"instance": "apps/wiki/instances/a1"}, "INVALID_FIELD"),
        ({"app_uid": "../x"}, "INVALID_FIELD"),
        ({"tail_line_count": -1}, "INVALID_FIELD"),
        ({"tail_line_count": 1, "resume_token": "0123abcd.1"}, "INVALID_FIELD"),
        ({"min_level": 7}, "INVALID_FIELD"),
        ({"resume_token": "nonsense"}, "INVALID_RESUME_TOKEN"),
        ({"name": "apps/unknown"}, "APP_NOT_FOUND"),
        ({"app_uid": "other"}, "APP_NOT_FOUND"),
    ],
)
async def test_what_cannot_be_told_is_refused(hosted, fields, reason):
    await hosted.start(hosted.spec(app_uid="uid-shop"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in hosted.stub.TailLogs(pb.TailLogsRequest(**{"name": "apps/shop", **fields})):
            pass
    assert reason_of(refused.value) == reason


async def test_with_echo_the_lines_are_in_the_nodes_log_too(capfd):
    echo_to_log()("shop", Entry(1, 1_000_000, 20, "a1", "stdout", "seen twice"))
    line = capfd.readouterr().err.splitlines()[-1]
    assert "app.log instance=apps/shop/instances/a1 source=stdout · seen twice" in line


@pytest.mark.parametrize("tier", TIERS)
async def test_the_traceback_of_an_app_that_does_not_start_is_in_its_log_once(
    tmp_path: Path, tier: str
) -> None:
    async with node(tmp_path, tier) as hosted:
        await hosted.start(
            app_uid="uid-shop",
            entrypoint="behaviours:raises_in_startup",
            isolation=pb.InstanceSpec.IsolationTier.Value(tier),
            restart_policy=pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY),
        )
        failed = await hosted.reaches(pb.Instance.FAILED)
        found = await until_told(hosted, "RuntimeError: the startup is broken")
        (entry,) = [entry for entry in found if "the startup is broken" in entry.text]
        assert entry.text == failed.last_error.detail.rstrip()
        assert entry.level == pb.LogEntry.SEVERE

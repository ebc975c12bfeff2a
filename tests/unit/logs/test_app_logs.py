"""From a line to its log: by instance, at a bounded rate, without ever waiting."""

import logging
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from runtime_node.isolation.current import running_as
from runtime_node.logs import writer
from runtime_node.logs.app_logs import AppLogs, LogSource
from runtime_node.logs.capture import AppLogHandler
from runtime_node.logs.entries import Entry
from runtime_node.logs.files import LogReader
from tests.eventually import WITHIN, eventually

SHOP, WIKI = "apps/shop/instances/a1", "apps/wiki/instances/b1"
SPEAKERS = {
    SHOP: LogSource("shop", "u1", ("canary-secret",)),
    WIKI: LogSource("wiki", "u2", ()),
}


@asynccontextmanager
async def heard(tmp_path: Path) -> AsyncIterator[AppLogs]:
    """Take over the process's streams: within a test, since pytest exchanges them before and after it."""
    logs = AppLogs(tmp_path, SPEAKERS.get)
    logs.start()
    try:
        yield logs
    finally:
        await logs.close()


async def entries(logs: AppLogs, app: str = "shop", uid: str = "u1") -> list[Entry]:
    await logs.written()
    log = await logs.open_log(app, uid, wake := lambda: None)
    reader, found = LogReader(log, 0), []
    while more := reader.read():
        found += more
    reader.close()
    logs.close_log(app, uid, wake)
    return found


async def test_what_is_printed_and_logged_goes_to_the_instance_whose_code_runs(tmp_path):
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            print("of the shop")
            logging.getLogger("any.library").warning("watch %s", "out")
        with running_as(WIKI):
            print("of the wiki", file=sys.stderr)
        assert [(e.source, e.level, e.text) for e in await entries(logs)] == [
            ("stdout", logging.INFO, "of the shop"),
            ("any.library", logging.WARNING, "watch out"),
        ]
        (only,) = await entries(logs, "wiki", "u2")
        assert (only.instance, only.source, only.level) == ("b1", "stderr", logging.WARNING)


async def test_what_the_node_says_stays_the_nodes(tmp_path, capsys, caplog):
    async with heard(tmp_path) as logs:
        print("of the node")
        with running_as(SHOP):
            logging.getLogger("runtime_node.instances").warning("for the shop, by the node")
        assert await entries(logs) == []
        assert capsys.readouterr().out == "of the node\n"
        assert "for the shop, by the node" in caplog.text


async def test_lines_of_two_threads_do_not_mix(tmp_path):
    async with heard(tmp_path) as logs:

        def talk(word: str) -> None:
            with running_as(SHOP):
                for _ in range(100):
                    sys.stdout.write(word)
                    time.sleep(0)
                    sys.stdout.write(f" {word}\n")

        threads = [threading.Thread(target=talk, args=(word,)) for word in ("left", "right")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [entry.text for entry in await entries(logs)]
        assert sorted(found) == ["left left"] * 100 + ["right right"] * 100


async def test_a_text_of_several_lines_is_several_entries_and_a_records_traceback_is_one(tmp_path):
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            print("one\ntwo\n\nfour")
            try:
                raise ValueError("five")
            except ValueError:
                logging.getLogger("x").exception("failed")
        found = [entry.text for entry in await entries(logs)]
        assert found[:4] == ["one", "two", "", "four"]
        assert found[4].startswith("failed\nTraceback")
        assert found[4].endswith("ValueError: five")


async def test_a_record_that_cannot_be_formatted_breaks_nothing(tmp_path):
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            # Not through a logger: pytest's own handler would raise.
            record = logging.LogRecord("x", logging.WARNING, "", 0, "%d", ("no number",), None)
            assert AppLogHandler(logs.write).handle(record)
        (only,) = await entries(logs)
        assert "not formatted: TypeError" in only.text


async def test_a_flood_is_cut_counted_exactly_and_keeps_no_caller_waiting(tmp_path, monkeypatch):
    async with heard(tmp_path) as logs:
        monkeypatch.setattr(writer, "LINES_PER_WINDOW", 50)
        monkeypatch.setattr(writer, "WINDOW_SECONDS", 0.3)
        count = 20_000
        go_on = threading.Event()
        held = logs._writer.call(lambda: go_on.wait(WITHIN))  # the disk stands still; who logs goes on
        with running_as(SHOP):
            for number in range(count):
                print("flood", number)
        with running_as(WIKI):
            print("calm")
        assert not held.done()
        go_on.set()

        def told_of(found: list[Entry]) -> int:
            return sum(entry.dropped or 1 for entry in found)

        found = await eventually(lambda: entries(logs), lambda found: told_of(found) == count)
        assert sum(entry.dropped for entry in found) > count * 0.9
        assert [e.cursor for e in found] == list(range(1, len(found) + 1))
        assert [e.text for e in await entries(logs, "wiki", "u2")] == ["calm"]


async def test_a_loss_is_told_in_its_place_while_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LINES_PER_WINDOW", 10)
    monkeypatch.setattr(writer, "WINDOW_SECONDS", 3600)
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            for number in range(25):
                print("line", number)

            async def all_told() -> bool:
                return sum(entry.dropped for entry in await entries(logs)) == 15

            # The window is not over, and no line has come after those that were dropped.
            await eventually(all_told)
            kept = [entry.text for entry in await entries(logs) if not entry.dropped]
            assert kept == [f"line {number}" for number in range(10)]
            # Another window: what was dropped before it stands before what comes.
            account = logs._accounts["shop", "u1"]
            account._until = 0.0
            print("next")
            account._until = 0.0
            print("last")
        found = await entries(logs)
        texts = [entry.text for entry in found]
        assert texts[-2:] == ["next", "last"]
        assert sum(entry.dropped for entry in found[10:-2]) == 15
        assert all(entry.dropped for entry in found[10:-2])


async def test_each_loss_stands_between_the_lines_it_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LINES_PER_WINDOW", 2)
    monkeypatch.setattr(writer, "WINDOW_SECONDS", 3600)
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            for window in range(3):
                for number in range(5):
                    print(f"{window}.{number}")
                await logs.written()
                logs._accounts["shop", "u1"]._until = 0.0
            print("end")
        order = ["gap" if e.dropped else e.text for e in await entries(logs)]
        compact = [text for index, text in enumerate(order) if text != "gap" or order[index - 1] != "gap"]
        assert compact == ["0.0", "0.1", "gap", "1.0", "1.1", "gap", "2.0", "2.1", "gap", "end"]
        assert sum(e.dropped for e in await entries(logs)) == 9


async def test_what_was_lost_of_an_app_that_ended_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LINES_PER_WINDOW", 2)
    monkeypatch.setattr(writer, "IDLE_SECONDS", 3600)
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            for number in range(5):
                print(number)
        logs.forget(SHOP, "shop", "u1")
        await logs.written()
        assert sum(entry.dropped for entry in await entries(logs)) == 3


async def test_a_print_inside_a_print_is_no_deadlock(tmp_path):
    async with heard(tmp_path) as logs:

        class Talkative:
            def __str__(self) -> str:
                print("inner")
                return "outer"

        with running_as(SHOP):
            print(Talkative())
            record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", (Talkative(),), None)
            assert AppLogHandler(logs.write).handle(record)
        assert [e.text for e in await entries(logs)] == ["inner", "outer", "inner", "outer"]


async def test_secrets_do_not_reach_the_disk(tmp_path):
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            print("the token is canary-secret")
            print("canary-", end="")
            print("secret")
            print("x" * (16 * 1024 - 6) + "canary-secret" + "y" * 20_000)
        await logs.written()
        stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*.log"))
        assert b"canary" not in stored
        assert b"secret" not in stored
        assert stored.count(b"***") >= 3


async def test_lines_of_an_instance_that_is_not_here_are_counted_and_forgotten(tmp_path):
    async with heard(tmp_path) as logs:
        with running_as("apps/gone/instances/z"):
            print("hello?")
        assert logs.lost == 1


async def test_the_process_has_its_streams_back_after_the_end(tmp_path):
    before = sys.stdout, sys.stderr, logging.getLogger().handlers[:]
    logs = AppLogs(tmp_path, SPEAKERS.get)
    logs.start()
    assert sys.stdout is not before[0]
    await logs.close()
    assert (sys.stdout, sys.stderr, logging.getLogger().handlers) == before


async def test_memory_of_an_instance_that_ended_is_released_and_its_log_goes_on_later(tmp_path):
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            print("before")
        logs.forget(SHOP, "shop", "u1")
        await logs.written()
        assert not logs._accounts
        assert not logs._channels
        with running_as(SHOP):
            print("after")
        assert [(e.cursor, e.text) for e in await entries(logs)] == [(1, "before"), (2, "after")]


async def test_a_stream_that_an_app_closes_stays_open(tmp_path):
    async with heard(tmp_path) as logs:
        with running_as(SHOP):
            sys.stdout.close()
            print("still here")
            sys.stdout.buffer.write(b"bytes \xff\n")
            assert not sys.stdout.isatty()
        assert [e.text for e in await entries(logs)] == ["still here", "bytes \\xff"]

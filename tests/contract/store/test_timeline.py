"""Events, forgetting, and resuming across a restart."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import event_number, last_event_number
from services.control_plane.store.sql.pruning import Bounds
from services.control_plane.store.sql_store import SqlCatalogStore
from services.rpc.errors import SupervisorError
from services.rpc.feed import ChangeFeed, Entry
from tests.contract.store.samples import WAIT, app, contents, event, operation, put, request


def add_events(store: SqlCatalogStore, of: str, *messages: str) -> None:
    def command(tx: Transaction) -> None:
        for message in messages:
            tx.add_event(of, event(message))

    store.write(command).result(WAIT)


def messages(store: SqlCatalogStore, of: str) -> list[str]:
    return [it.message for it in store.events(of, 1_000_000)]


def test_events_come_newest_first_in_pages(catalog: Any) -> None:
    clock = [1_000_000]
    store = catalog.open(clock=lambda: clock[0])
    add_events(store, "apps/a", "1", "2", "3")
    add_events(store, "apps/b", "other")
    clock[0] = 2_000_000
    add_events(store, "apps/a", "4")
    store = catalog.reopen()
    assert messages(store, "apps/a") == ["4", "3", "2", "1"]
    seen, before = [], ""
    while page := store.events("apps/a", 2, before):
        seen += [it.message for it in page]
        before = page[-1].name.rpartition("/")[2]
    assert seen == ["4", "3", "2", "1"]
    names = [it.name for it in store.events("apps/a", 10)]
    assert names == sorted(names, reverse=True)
    assert all(name.startswith("apps/a/events/") for name in names)
    assert [it.create_time.ToMicroseconds() for it in store.events("apps/a", 2)] == [2_000_000, 1_000_000]


def test_an_events_position_that_is_none_is_refused(store: SqlCatalogStore) -> None:
    for position in ("what", "-1", "f" * 40):
        with pytest.raises(SupervisorError) as caught:
            store.events("apps/a", 1, position)
        assert caught.value.reason == "INVALID_PAGE_TOKEN"


def test_adding_an_event_leaves_the_callers_message_alone(store: SqlCatalogStore) -> None:
    mine = event("mine")
    store.write(lambda tx: tx.add_event("apps/a", mine)).result(WAIT)
    assert mine == event("mine")


def test_the_events_of_a_removed_app_stay(store: SqlCatalogStore) -> None:
    store.write(put(app("apps/a"))).result(WAIT)
    add_events(store, "apps/a", "made")
    store.write(lambda tx: tx.delete_app("apps/a")).result(WAIT)
    assert messages(store, "apps/a") == ["made"]


def test_events_are_read_while_the_writer_is_busy(store: SqlCatalogStore) -> None:
    add_events(store, "apps/a", "1")
    running, go = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        assert tx.request("opens a transaction in the database") is None
        tx.add_event("apps/a", event("2"))
        running.set()
        assert go.wait(WAIT)

    held = store.write(hold)
    assert running.wait(WAIT)
    assert messages(store, "apps/a") == ["1"]
    go.set()
    held.result(WAIT)
    assert messages(store, "apps/a") == ["2", "1"]


def test_what_has_expired_is_forgotten_in_bounded_steps(catalog: Any) -> None:
    clock = [1_000]
    store = catalog.open(clock=lambda: clock[0], bounds=Bounds(at_once=10))
    records = [operation(f"operations/{it:02}", "apps/a", done=True, expire_time=2_000) for it in range(25)]
    store.write(put(*records, *(request(f"r{it}", 2_000) for it in range(25)))).result(WAIT)
    kept = [operation("operations/open", "apps/a"), operation("operations/x", "apps/a", expire_time=9_000)]
    store.write(put(*kept, request("kept", 9_000))).result(WAIT)
    assert store.prune() == 0
    clock[0] = 2_000
    assert [store.prune(), store.prune(), store.prune(), store.prune()] == [20, 20, 10, 0]
    assert list(contents(store.mirror.operations)) == ["operations/open", "operations/x"]
    store = catalog.reopen(clock=lambda: 1_000)
    assert list(contents(store.mirror.operations)) == ["operations/open", "operations/x"]
    assert store.write(lambda tx: tx.request("kept")).result(WAIT) is not None


def test_of_too_many_ended_operations_the_oldest_go_before_their_time(catalog: Any) -> None:
    store = catalog.open(clock=lambda: 1_000, bounds=Bounds(operations=5, at_once=2))
    ended = [operation(f"operations/{it}", "apps/a", done=True, expire_time=9_000 - it) for it in range(8)]
    store.write(put(*ended, operation("operations/open", "apps/a"))).result(WAIT)
    assert [store.prune(), store.prune(), store.prune()] == [2, 1, 0]
    left = [f"operations/{it}" for it in range(5)]
    assert list(contents(store.mirror.operations)) == [*left, "operations/open"]
    store = catalog.reopen(clock=lambda: 1_000)
    assert list(contents(store.mirror.operations)) == [*left, "operations/open"]


def test_an_app_keeps_its_newest_events(catalog: Any) -> None:
    store = catalog.open(bounds=Bounds(events=3))
    for number in range(5):
        add_events(store, "apps/a", str(number))
        add_events(store, f"apps/b{number}", "only")
    assert store.prune() == 2
    assert store.prune() == 0
    assert messages(store, "apps/a") == ["4", "3", "2"]
    assert all(messages(store, f"apps/b{number}") == ["only"] for number in range(5))


def test_the_change_log_forgets_its_oldest_revisions_and_with_them_removed_apps_events(catalog: Any) -> None:
    bounds = Bounds(changes=10, at_once=1)
    store = catalog.open(bounds=bounds)
    for name in ("apps/a", "apps/b"):
        store.write(put(app(name))).result(WAIT)
        add_events(store, name, "made")
        store.write(lambda tx, name=name: tx.delete_app(name)).result(WAIT)
    removed = store.mirror.apps.revision
    for number in range(12):
        store.write(put(app("apps/kept", generation=number))).result(WAIT)
    pruned = 0
    while forgotten := store.prune():
        pruned += forgotten
    assert pruned == 2
    assert messages(store, "apps/a") == messages(store, "apps/b") == []
    store = catalog.reopen(bounds=bounds)
    assert store.mirror.apps.oldest_revision >= removed
    assert store.mirror.apps.oldest_revision <= store.mirror.apps.revision - 10
    with pytest.raises(SupervisorError):
        resume(store.mirror.apps, removed - 1)


def resume(feed: ChangeFeed[Any], after: int) -> list[tuple[str, int, bool]]:
    """What a reader that resumes gets before SYNCED."""

    async def read() -> list[tuple[str, int, bool]]:
        told = []
        async for item in feed.watch(after, 1):
            if not isinstance(item, Entry):
                return told
            told.append((item.key, item.revision, item.value is None))
        return told

    return asyncio.run(asyncio.wait_for(read(), WAIT))


def test_a_reader_resumes_exactly_across_a_restart(catalog: Any) -> None:
    store = catalog.open()
    first = store.write(put(app("apps/a"), app("apps/b"), app("apps/c"))).result(WAIT)
    second = store.write(put(app("apps/b", generation=2))).result(WAIT)
    for name in ("apps/a", "apps/b", "apps/c"):
        store.write(lambda tx, name=name: tx.delete_app(name)).result(WAIT)
    fourth = store.write(put(app("apps/c"))).result(WAIT)
    expected = [("apps/a", second + 1, True), ("apps/b", second + 2, True), ("apps/c", fourth, False)]
    assert resume(store.mirror.apps, first) == expected
    store = catalog.reopen()
    assert resume(store.mirror.apps, first) == expected
    assert resume(store.mirror.apps, second + 1) == expected[1:]
    assert resume(store.mirror.apps, fourth) == []
    with pytest.raises(SupervisorError) as caught:
        resume(store.mirror.apps, fourth + 1)
    assert caught.value.reason == "RESUME_TOKEN_EXPIRED"


def test_nobody_resumes_where_removals_were_not_loaded(catalog: Any) -> None:
    store = catalog.open()
    revision = store.write(put(operation("operations/o", "apps/a"))).result(WAIT)
    store.write(lambda tx: tx.delete_operation("operations/o")).result(WAIT)
    store = catalog.reopen()
    with pytest.raises(SupervisorError):
        resume(store.mirror.operations, revision)


def test_all_apps_events_are_read_in_their_order_between_two_numbers(catalog: Any) -> None:
    store = catalog.open()
    add_events(store, "apps/b", "1", "2")
    middle = last_event_number(store.mirror.apps.revision)
    add_events(store, "apps/a", "3")
    end = last_event_number(store.mirror.apps.revision)
    add_events(store, "apps/b", "4")
    store = catalog.reopen()

    def told(after: int, up_to: int, limit: int = 9, app: str = "") -> list[str]:
        return [it.message for it in store.events_after(after, up_to, limit, app)]

    newest = last_event_number(store.mirror.apps.revision)
    start = last_event_number(0)
    assert told(start, newest) == ["1", "2", "3", "4"]
    assert told(start, newest, limit=3) == ["1", "2", "3"]
    assert told(start, end) == ["1", "2", "3"]
    assert told(middle, end) == ["3"]
    assert told(start, newest, app="apps/b") == ["1", "2", "4"]
    first = store.events_after(start, newest, 1)[0]
    assert told(event_number(first), newest) == ["2", "3", "4"]
    assert [it.message for it in store.events("", 3)] == ["4", "3", "2"]


def test_a_place_behind_which_events_were_forgotten_is_refused_and_no_other(catalog: Any) -> None:
    store = catalog.open(bounds=Bounds(events=3))
    start = last_event_number(store.mirror.apps.revision)
    for number in range(5):
        add_events(store, "apps/a", str(number))
    add_events(store, "apps/b", "only")
    newest = last_event_number(store.mirror.apps.revision)
    store.prune()
    for app_of, after in (("", start), ("apps/a", start)):
        with pytest.raises(SupervisorError) as caught:
            store.events_after(after, newest, 2, app_of)
        assert caught.value.reason == "RESUME_TOKEN_EXPIRED"
    assert [it.message for it in store.events_after(start, newest, 9, "apps/b")] == ["only"]
    since = event_number(store.events("apps/a", 3)[-1])
    assert [it.message for it in store.events_after(since, newest, 9)] == ["3", "4", "only"]


def test_a_place_older_than_a_forgotten_removal_is_refused(catalog: Any) -> None:
    store = catalog.open(bounds=Bounds(changes=5))
    store.write(put(app("apps/a"))).result(WAIT)
    before = last_event_number(store.mirror.apps.revision)
    add_events(store, "apps/a", "made")
    store.write(lambda tx: tx.delete_app("apps/a")).result(WAIT)
    removed = last_event_number(store.mirror.apps.revision)
    for number in range(6):
        store.write(put(app("apps/kept", generation=number))).result(WAIT)
    while store.prune():
        pass
    newest = last_event_number(store.mirror.apps.revision)
    with pytest.raises(SupervisorError) as caught:
        store.events_after(before, newest, 9)
    assert caught.value.reason == "RESUME_TOKEN_EXPIRED"
    assert store.events_after(max(removed, newest - 4096), newest, 9) == []

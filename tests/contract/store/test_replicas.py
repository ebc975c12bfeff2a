"""Several control planes on one PostgreSQL database: each writes, all see all, one leads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from services.control_plane.store.errors import StoreError
from services.control_plane.store.sql import postgresql as postgresql_store
from services.control_plane.store.sql import reader
from services.control_plane.store.sql_store import SqlCatalogStore, open_store
from services.rpc.errors import SupervisorError
from services.rpc.feed import Entry
from tests.contract.store.conftest import Catalog
from tests.contract.store.samples import (
    WAIT,
    app,
    check_change_log,
    contents,
    node,
    operation,
    put,
    raised,
    snapshot,
)
from tests.eventually import eventually_blocking
from tests.postgresql import Server


@pytest.fixture
def shared(postgresql: Server) -> Iterator[Catalog]:
    """An empty PostgreSQL database."""
    with ExitStack() as stack:
        catalog = Catalog(postgresql.create_database(stack))
        stack.callback(catalog.close)
        yield catalog


@pytest.fixture
def pair(shared: Catalog) -> tuple[SqlCatalogStore, SqlCatalogStore]:
    """Two stores on one database."""
    return shared.open(), shared.open()


def test_what_one_replica_commits_the_other_is_told(pair: Any) -> None:
    one, other = pair
    revision = one.write(
        put(node("environments/default/nodes/n"), app("apps/a", domains=("x.example",)))
    ).result(WAIT)
    eventually_blocking(lambda: other.mirror.apps.revision >= revision)
    assert snapshot(one.mirror) == snapshot(other.mirror)
    with pytest.raises(SupervisorError) as caught:
        other.write(put(app("apps/b", domains=("x.example",)))).result(WAIT)
    assert caught.value.reason == "DOMAIN_TAKEN"
    one.write(lambda tx: tx.delete_app("apps/a")).result(WAIT)
    eventually_blocking(lambda: other.mirror.apps.get("apps/a") is None)
    assert other.write(put(app("apps/b", domains=("x.example",)))).result(WAIT)


def test_a_replica_asked_to_catch_up_knows_what_was_answered_elsewhere(pair: Any) -> None:
    one, other = pair
    for number in range(20):
        revision = one.write(put(app(f"apps/a{number}"))).result(WAIT)
        assert other.catch_up().result(WAIT) >= revision
        assert other.mirror.apps.get(f"apps/a{number}") is not None


def test_replicas_that_write_at_once_lose_no_update_and_give_no_revision_twice(
    pair: Any, shared: Catalog
) -> None:
    pair[0].write(put(app("apps/a", generation=0))).result(WAIT)
    revisions: list[int] = []

    def count(tx: Any) -> int:
        tx.put_app(raised(tx.app("apps/a")))
        tx.put_operation(operation(f"operations/{tx.revision}", "apps/a", done=True, expire_time=2**60))
        return tx.revision

    def client(store: SqlCatalogStore) -> None:
        for _ in range(25):
            revisions.append(store.write(count).result(WAIT))  # noqa: PERF401  # one after the other

    threads = [threading.Thread(target=client, args=(store,)) for store in pair for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert sorted(revisions) == list(range(min(revisions), min(revisions) + 200))
    for store in pair:
        store.catch_up().result(WAIT)
        assert store.mirror.apps.get("apps/a").generation == 200
    assert snapshot(pair[0].mirror) == snapshot(pair[1].mirror)
    with pair[0]._database.reader.connect() as connection:
        check_change_log(connection, pair[0].mirror)


def test_times_never_fall_from_one_replica_to_the_other(pair: Any) -> None:
    times = []
    for number in range(20):
        store = pair[number % 2]
        times.append(store.write(lambda tx: (tx.put_app(app("apps/a")), tx.now)[1]).result(WAIT))
        assert store.now() >= times[-1]
    assert times == sorted(times)


def test_connections_cut_by_the_server_fail_no_write_that_comes_after(
    pair: Any, shared: Catalog, postgresql: Server
) -> None:
    one, other = pair
    one.write(put(app("apps/a"))).result(WAIT)
    for number in range(5):
        assert postgresql.cut(shared.url)
        assert pair[number % 2].write(put(app(f"apps/b{number}"))).result(WAIT)
    for store in pair:
        assert store.catch_up().result(WAIT)
    assert snapshot(one.mirror) == snapshot(other.mirror)
    assert len(contents(one.mirror.apps)) == 6


def test_a_commit_whose_answer_was_lost_is_told_from_those_of_others_that_came_after(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    one.write(put(app("apps/a"))).result(WAIT)
    runner = one._database.runner
    run_and_commit = runner.run_and_commit
    fates = ["done", "lost"]

    def commit(connection: Any, steps: Any) -> Any:
        if not fates:
            return run_and_commit(connection, steps)
        if fates.pop(0) == "done":
            run_and_commit(connection, steps)
        else:
            connection.rollback()
        # Another replica commits before this one can ask.
        other.write(put(app(f"apps/other{len(fates)}"))).result(WAIT)
        raise OperationalError("commit", {}, Exception("gone"))

    monkeypatch.setattr(runner, "run_and_commit", commit)
    first = one.write(put(app("apps/first"))).result(WAIT)
    assert one.mirror.apps.get("apps/first").revision == first
    with pytest.raises(SupervisorError) as caught:
        one.write(put(app("apps/second"))).result(WAIT)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    one.catch_up().result(WAIT)
    other.catch_up().result(WAIT)
    assert list(contents(one.mirror.apps)) == ["apps/a", "apps/first", "apps/other0", "apps/other1"]
    assert snapshot(one.mirror) == snapshot(other.mirror)


def test_a_write_of_an_older_term_is_refused_in_its_own_transaction(pair: Any) -> None:
    one, other = pair
    first = one.seat.take("one", "h:1", 30.0)
    assert first.leads
    waits = other.seat.take("other", "h:2", 30.0)
    assert (waits.leads, waits.holder, waits.address) == (False, "one", "h:1")
    assert 0 < waits.remaining <= 30
    led = one.led_by(first.term)
    led.write(put(app("apps/a"))).result(WAIT)
    one.seat.leave("one", first.term)
    second = other.seat.take("other", "h:2", 30.0)
    assert second.term > first.term
    assert one.seat.renew("one", first.term, 30.0) is False
    with pytest.raises(SupervisorError) as caught:
        led.write(put(app("apps/late"))).result(WAIT)
    assert (caught.value.reason, caught.value.metadata) == (
        "LEADERSHIP_LOST",
        {"term": str(first.term), "newest_term": str(second.term)},
    )
    assert one.write(put(app("apps/anyone"))).result(WAIT)
    assert other.led_by(second.term).write(put(app("apps/b"))).result(WAIT)
    assert list(contents(other.mirror.apps)) == ["apps/a", "apps/anyone", "apps/b"]


def test_a_leaders_time_runs_out_by_the_databases_clock(pair: Any) -> None:
    one, other = pair
    assert one.seat.take("one", "h:1", 0.05).leads
    eventually_blocking(lambda: other.seat.take("other", "h:2", 5.0).leads)
    assert one.seat.renew("one", 1, 5.0) is False


@pytest.mark.parametrize("unfinished", [True, False])
def test_a_replica_that_stands_still_in_the_midst_of_a_write_keeps_its_lock_for_seconds(
    shared: Catalog, monkeypatch: pytest.MonkeyPatch, unfinished: bool
) -> None:
    from services.control_plane.store.sql import seat  # noqa: PLC0415

    monkeypatch.setattr(seat, "STILL_SECONDS", 0.5)
    one, other = shared.open(), shared.open()
    stands: Any = one._database.writer.raw_connection()
    raw = stands.driver_connection
    # Sent, with its end or without: as by a process that is stopped between two system calls.
    raw.execute("SET idle_in_transaction_session_timeout = 0")
    together = raw.pipeline()
    together.__enter__()
    raw.execute("SELECT term FROM meta WHERE id = 1 FOR UPDATE")
    if not unfinished:
        together.__exit__(None, None, None)

    def leads() -> bool:
        try:
            return other.seat.take("other", "h:2", 5.0).leads
        except SupervisorError:
            return False  # the lock was waited for

    eventually_blocking(leads)
    assert other.write(put(app("apps/a"))).result(WAIT)
    with pytest.raises(psycopg.OperationalError):
        together.__exit__(None, None, None) if unfinished else raw.execute("SELECT 1")
    stands.invalidate()


@pytest.mark.parametrize("hours", [-1, 1])
def test_who_leads_is_not_changed_by_a_clock_that_is_set_to_another_time(
    shared: Catalog, pair: Any, hours: int
) -> None:
    one, other = pair
    assert one.seat.take("one", "h:1", 30.0).leads
    assert not other.seat.take("other", "h:2", 30.0).leads
    with one._database.writer.connect() as connection:  # what the row looks like then
        connection.exec_driver_sql(
            f"UPDATE leadership SET expire_time = expire_time - {hours * 3_600_000_000}"
        )
        connection.commit()
    waits = other.seat.take("other", "h:2", 30.0)
    assert (waits.leads, waits.holder) == (False, "one")
    assert 0 < waits.remaining <= 30
    third = shared.open()  # nobody waits until the clock has caught up
    eventually_blocking(lambda: third.seat.take("third", "h:3", 0.05).leads)


def test_a_replica_that_the_change_log_has_left_behind_compares_what_there_is(
    shared: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.control_plane.store.sql.pruning import Bounds  # noqa: PLC0415

    one = shared.open(bounds=Bounds(changes=3))
    other = shared.open()
    one.write(put(app("apps/a"), app("apps/gone"))).result(WAIT)
    other.catch_up().result(WAIT)
    # The other is held while much happens, more than the log keeps.
    running, go = threading.Event(), threading.Event()
    follow = other._writer._storage.follow

    def held() -> None:
        running.set()
        assert go.wait(WAIT)
        follow()

    monkeypatch.setattr(other._writer._storage, "follow", held)
    one.write(lambda tx: tx.delete_app("apps/gone")).result(WAIT)
    assert running.wait(WAIT)
    for number in range(10):
        one.write(put(app(f"apps/b{number}"))).result(WAIT)
    while one.prune():
        pass
    one.write(put(app("apps/last"))).result(WAIT)
    assert one._state.oldest_revision > other._state.revision
    go.set()
    other.catch_up().result(WAIT)
    assert snapshot(one.mirror) == snapshot(other.mirror)
    assert other.mirror.apps.was_deleted("apps/gone")


async def test_a_watcher_that_hops_between_replicas_misses_nothing(pair: Any) -> None:
    """With the position of one replica it goes on at the other, in the midst of writes at both."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            pair[number % 2].write(put(app(f"apps/a{number % 7}", generation=number))).result(WAIT)

    writer = threading.Thread(target=write)
    writer.start()
    known: dict[str, Any] = {}
    position: int | None = None
    try:
        for hop in range(12):
            feed = pair[hop % 2].mirror.apps
            if position is not None and position > feed.revision:
                await asyncio.wrap_future(pair[hop % 2].catch_up())
            seen = 0
            async for item in feed.watch(position, 0.2):
                if isinstance(item, Entry):
                    known[item.key] = item.value
                position = max(position or 0, item.revision)
                seen += 1
                if seen > 10:
                    break
    finally:
        stop.set()
        writer.join(WAIT)
    await asyncio.wrap_future(pair[0].catch_up())
    for entry in pair[0].mirror.apps.since(position or 0):
        known[entry.key] = entry.value
    assert known == {key: value for key, (_, value) in contents(pair[0].mirror.apps).items()}


def test_replicas_started_at_once_on_an_empty_database_agree_on_one_catalog(shared: Catalog) -> None:
    opened: list[Any] = []
    opener: Callable[[], None] = lambda: opened.append(shared.open())  # noqa: E731
    threads = [threading.Thread(target=opener) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len({store.catalog_id for store in opened}) == 1
    assert len(opened) == 4


def test_a_catalog_that_takes_long_to_decode_is_opened(
    shared: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reader.read_histories

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        return read(*arguments)

    monkeypatch.setattr(reader, "read_histories", slowly)
    monkeypatch.setattr(postgresql_store, "SESSION", postgresql_store.SESSION.replace("'3s'", "'100ms'"))
    assert shared.open().catalog_id


def test_a_server_that_is_away_fails_writes_alone_and_is_found_again() -> None:
    """Reads go on from the mirror; what was acknowledged is there when it is back."""
    with ExitStack() as stack:
        server = Server(stack)
        catalog = Catalog(server.create_database(stack))
        stack.callback(catalog.close)
        one, other = catalog.open(), catalog.open()
        one.write(put(app("apps/a"))).result(WAIT)
        other.catch_up().result(WAIT)
        server.stop()
        for store in (one, other):
            with pytest.raises(SupervisorError) as caught:
                store.write(put(app("apps/b"))).result(WAIT)
            assert caught.value.reason == "STORE_UNAVAILABLE"
            with pytest.raises(SupervisorError):
                store.catch_up().result(WAIT)
            with pytest.raises(SupervisorError):
                store.seat.take("h", "a", 5.0)
            assert store.mirror.apps.get("apps/a") is not None
        server.start()
        assert other.write(put(app("apps/c"))).result(WAIT)
        eventually_blocking(lambda: one.mirror.apps.get("apps/c") is not None)
        assert one.write(put(app("apps/d"))).result(WAIT)
        assert list(contents(one.mirror.apps)) == ["apps/a", "apps/c", "apps/d"]
        one.write(put(app("apps/e"))).result(WAIT)
        eventually_blocking(lambda: other.mirror.apps.get("apps/e") is not None)


def test_a_server_that_cannot_be_reached_at_start_is_told_in_a_sentence_without_the_password() -> None:
    for url in (
        "postgresql://u:hunter2@127.0.0.1:1/db",
        "postgresql://u:hunter2%zz@127.0.0.1/db",
        "postgresql://u:hunter2@127.0.0.1/db?colour=blue",
        "postgresql+psycopg2://u:hunter2@127.0.0.1/db",
    ):
        with pytest.raises(StoreError) as caught:
            open_store(url)
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith((".", "database"))

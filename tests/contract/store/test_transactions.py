"""What a command may rely on: all or nothing, its own writes, its revision, its time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DeleteAppRequest
from services.control_plane.store import writer
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import Version
from services.rpc.errors import SupervisorError
from tests.contract.store.samples import (
    DEFAULT,
    WAIT,
    app,
    bare,
    certificate,
    contents,
    database_server,
    environment,
    event,
    node,
    operation,
    put,
    raised,
    request,
    snapshot,
)


@contextmanager
def one_batch(store: CatalogStore) -> Iterator[None]:
    """Holds the writer, so that all that is written meanwhile shares one commit."""
    running, go = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        running.set()
        assert go.wait(WAIT)

    held = store.write(hold)
    assert running.wait(WAIT)
    try:
        yield
    finally:
        go.set()
        held.result(WAIT)


def reason(future: Future[Any]) -> str:
    with pytest.raises(SupervisorError) as caught:
        future.result(WAIT)
    return caught.value.reason


def test_a_new_catalog_has_the_default_environment_and_an_id_of_its_own(new_catalog: Any) -> None:
    first, second = new_catalog(), new_catalog()
    store = first.open()
    known, identity = snapshot(store.mirror), store.catalog_id
    assert list(known["environment"]) == [DEFAULT]
    assert second.open().catalog_id != identity
    again = first.reopen()
    assert (again.catalog_id, snapshot(again.mirror)) == (identity, known)


def test_an_answered_write_is_in_the_mirror_and_in_the_reopened_store(catalog: Any) -> None:
    store = catalog.open()
    records = [
        database_server("databaseServers/d"),
        environment("environments/e"),
        certificate("certificates/c"),
        node("environments/e/nodes/n"),
        app("apps/a", environment="environments/e", domains=("a.example",)),
        operation("operations/o", "apps/a", done=True, expire_time=9),
    ]
    revision = store.write(put(*records)).result(WAIT)
    seen = snapshot(store.mirror)
    assert {key: at for kind in seen.values() for key, (at, _) in kind.items() if key != DEFAULT} == {
        "databaseServers/d": revision,
        "environments/e": revision,
        "certificates/c": revision,
        "environments/e/nodes/n": revision,
        "apps/a": revision,
        "operations/o": revision,
    }
    assert snapshot(catalog.reopen().mirror) == seen


def test_apps_on_a_database_server_are_counted_through_all_that_is_not_committed_yet(store: Any) -> None:
    def on_server(name: str) -> Any:
        record = app(name)
        record.spec.database.postgres.server = "databaseServers/d"
        return record

    store.write(put(database_server("databaseServers/d"), on_server("apps/a"), app("apps/b"))).result(WAIT)
    assert store.mirror.count_on_server("databaseServers/d") == 1

    def command(tx: Any) -> tuple[int, ...]:
        counts = [tx.count_apps_on_server("databaseServers/d")]
        for change in (
            lambda: tx.put_app(on_server("apps/c")),
            lambda: tx.put_app(on_server("apps/a")),
            lambda: tx.delete_app("apps/a"),
            lambda: tx.delete_database_server("databaseServers/d"),
        ):
            change()
            counts.append(tx.count_apps_on_server("databaseServers/d"))
        assert tx.database_server("databaseServers/d") is None
        return tuple(counts)

    assert store.write(command).result(WAIT) == (1, 2, 2, 1, 1)
    assert store.mirror.count_on_server("databaseServers/d") == 1
    assert store.mirror.database_servers.get("databaseServers/d") is None


def test_a_database_server_does_not_show_its_secrets() -> None:
    shown = repr(database_server("databaseServers/d"))
    assert "secret" not in shown
    assert "key" not in shown
    assert "secret" not in repr(certificate("certificates/c"))


def test_every_field_of_an_app_survives(catalog: Any) -> None:
    record = replace(
        app("apps/a", generation=7),
        target=Version(6, 3),
        failed=Version(6, 2),
        deleting=DeleteAppRequest.DROP,
        status=App(uri="http://a"),
    )
    record.spec.secret_env["TOKEN"] = "secret"
    catalog.open().write(put(record)).result(WAIT)
    assert bare(catalog.reopen().mirror.apps.get("apps/a")) == record


def test_a_command_that_raises_leaves_nothing_and_harms_no_neighbour(store: CatalogStore) -> None:
    def fails(tx: Transaction) -> None:
        tx.put_app(app("apps/bad", domains=("bad.example",)))
        tx.put_operation(operation("operations/bad", "apps/bad"))
        tx.add_event("apps/bad", event("bad"))
        tx.put_request(request("bad", 2**60))
        raise KeyError("mine")

    with one_batch(store):
        before = store.write(put(app("apps/before")))
        bad = store.write(fails)
        after = store.write(put(app("apps/after", domains=("bad.example",))))
    with pytest.raises(KeyError, match="mine"):
        bad.result(WAIT)
    assert after.result(WAIT) == before.result(WAIT) + 1
    assert list(contents(store.mirror.apps)) == ["apps/after", "apps/before"]
    assert not contents(store.mirror.operations)
    assert store.events("apps/bad", 10) == []
    assert store.write(lambda tx: tx.request("bad")).result(WAIT) is None


def test_a_command_reads_what_it_wrote(store: CatalogStore) -> None:
    def command(tx: Transaction) -> None:
        tx.put_environment(environment("environments/e"))
        assert tx.environment("environments/e") is not None
        tx.put_node(node("environments/e/nodes/b"))
        tx.put_node(node("environments/e/nodes/a"))
        tx.put_node(node("environments/default/nodes/c"))
        assert [it.name for it in tx.nodes("environments/e")] == [
            "environments/e/nodes/a",
            "environments/e/nodes/b",
        ]
        tx.delete_node("environments/e/nodes/a")
        assert tx.node("environments/e/nodes/a") is None
        assert [it.name for it in tx.nodes("environments/e")] == ["environments/e/nodes/b"]
        tx.put_app(app("apps/a", environment="environments/e"))
        assert tx.count_apps("environments/e") == 1
        written = tx.app("apps/a")
        assert written is not None
        assert written.revision == tx.revision
        tx.put_operation(operation("operations/2", "apps/a"))
        tx.put_operation(operation("operations/1", "apps/a"))
        assert [it.name for it in tx.open_operations("apps/a")] == ["operations/1", "operations/2"]
        tx.put_operation(operation("operations/1", "apps/a", done=True))
        assert [it.name for it in tx.open_operations("apps/a")] == ["operations/2"]
        tx.put_request(request("r", tx.now + 1))
        assert tx.request("r") is not None
        tx.delete_app("apps/a")
        assert tx.app("apps/a") is None
        assert tx.count_apps("environments/e") == 0
        tx.delete_operation("operations/2")
        assert tx.operation("operations/2") is None
        tx.delete_environment("environments/e")
        assert tx.environment("environments/e") is None
        tx.delete_node("environments/e/nodes/b")

    store.write(command).result(WAIT)
    assert list(contents(store.mirror.environments)) == [DEFAULT]
    assert list(contents(store.mirror.nodes)) == ["environments/default/nodes/c"]
    assert not contents(store.mirror.apps)


def test_a_command_reads_what_its_batch_wrote_before_it(store: CatalogStore) -> None:
    store.write(put(app("apps/a"), operation("operations/1", "apps/a"))).result(WAIT)

    def look(tx: Transaction) -> Any:
        return (
            tx.app("apps/a"),
            tx.count_apps(DEFAULT),
            [it.name for it in tx.open_operations("apps/a")],
            [it.name for it in tx.nodes(DEFAULT)],
            tx.request("r") is not None,
        )

    with one_batch(store):
        store.write(
            put(
                app("apps/b"),
                operation("operations/1", "apps/a", done=True),
                operation("operations/2", "apps/a"),
                node("environments/default/nodes/n"),
                request("r", 2**60),
            )
        )
        store.write(lambda tx: tx.delete_app("apps/a"))
        seen = store.write(look)
    assert seen.result(WAIT) == (None, 1, ["operations/2"], ["environments/default/nodes/n"], True)


def test_each_writing_command_has_the_next_revision_and_a_reading_one_none(store: CatalogStore) -> None:
    with one_batch(store):
        futures = [store.write(put(app(f"apps/a{number}"))) for number in range(10)]
        reading = store.write(lambda tx: tx.revision)
        last = store.write(put(app("apps/last")))
    revisions = [future.result(WAIT) for future in [*futures, last]]
    assert revisions == list(range(revisions[0], revisions[0] + 11))
    assert reading.result(WAIT) == revisions[-1]
    assert [entry.revision for entry in store.mirror.apps.since(revisions[0] - 1)] == revisions
    assert store.mirror.apps.revision == revisions[-1]


def test_a_domain_belongs_to_one_app_at_a_time(catalog: Any) -> None:
    store = catalog.open()
    store.write(put(app("apps/a", domains=("x.example", "y.example")))).result(WAIT)
    assert reason(store.write(put(app("apps/b", domains=("x.example",))))) == "DOMAIN_TAKEN"
    store = catalog.reopen()
    assert reason(store.write(put(app("apps/b", domains=("x.example",))))) == "DOMAIN_TAKEN"
    with one_batch(store):
        gives = store.write(put(app("apps/a", domains=("y.example",))))
        takes = store.write(put(app("apps/b", domains=("x.example",))))
        late = store.write(put(app("apps/c", domains=("x.example",))))
    gives.result(WAIT)
    takes.result(WAIT)
    assert reason(late) == "DOMAIN_TAKEN"

    def swap(tx: Transaction) -> None:
        tx.delete_app("apps/a")
        tx.put_app(app("apps/b", domains=("y.example",)))
        tx.put_app(app("apps/c", domains=("x.example",)))

    store.write(swap).result(WAIT)
    store = catalog.reopen()
    assert reason(store.write(put(app("apps/d", domains=("x.example",))))) == "DOMAIN_TAKEN"
    assert reason(store.write(put(app("apps/d", domains=("y.example",))))) == "DOMAIN_TAKEN"


def test_an_app_that_another_of_its_name_replaces_keeps_nothing_of_it(catalog: Any) -> None:
    store = catalog.open()
    store.write(put(app("apps/a", uid="one", domains=("x.example", "y.example")))).result(WAIT)

    def replace_it(tx: Transaction) -> None:
        tx.delete_app("apps/a")
        tx.put_app(app("apps/a", uid="two", domains=("y.example",)))

    store.write(replace_it).result(WAIT)
    store.write(put(app("apps/a", uid="three", domains=("y.example",)))).result(WAIT)
    with one_batch(store):
        store.write(lambda tx: tx.delete_app("apps/a"))
        store.write(put(app("apps/a", uid="four", domains=("y.example",))))
        store.write(put(app("apps/b", uid="one", domains=("x.example",))))
    store = catalog.reopen()
    assert {name: record.uid for name, (_, record) in contents(store.mirror.apps).items()} == {
        "apps/a": "four",
        "apps/b": "one",
    }
    assert reason(store.write(put(app("apps/c", domains=("y.example",))))) == "DOMAIN_TAKEN"


def test_a_row_that_the_database_refuses_fails_its_command_alone(store: CatalogStore) -> None:
    with one_batch(store):
        before = store.write(put(app("apps/before")))
        bad = store.write(put(app("apps/bad", environment="environments/none")))
        after = store.write(put(app("apps/after")))
    with pytest.raises(IntegrityError):
        bad.result(WAIT)
    assert after.result(WAIT) == before.result(WAIT) + 1
    assert list(contents(store.mirror.apps)) == ["apps/after", "apps/before"]


def test_request_ids_are_remembered_until_they_expire(catalog: Any) -> None:
    clock = [1_000]
    store = catalog.open(clock=lambda: clock[0])
    store.write(put(request("r", 2_000, "first"))).result(WAIT)
    store = catalog.reopen(clock=lambda: clock[0])
    assert store.write(lambda tx: tx.request("r")).result(WAIT) == request("r", 2_000, "first")
    clock[0] = 2_000
    assert store.write(lambda tx: tx.request("r")).result(WAIT) is None
    store.write(put(request("r", 3_000, "second"))).result(WAIT)
    assert store.write(lambda tx: tx.request("r")).result(WAIT) == request("r", 3_000, "second")


def test_time_never_falls_whatever_the_clock_does(catalog: Any) -> None:
    clock = [1_000]
    store = catalog.open(clock=lambda: clock[0])

    def stamp(tx: Transaction) -> int:
        tx.put_app(app("apps/a"))
        return tx.now

    assert store.write(stamp).result(WAIT) == 1_000
    clock[0] = 5
    assert store.write(stamp).result(WAIT) == 1_000
    store = catalog.reopen(clock=lambda: clock[0])
    assert store.write(stamp).result(WAIT) == 1_000
    clock[0] = 1_001
    assert store.write(stamp).result(WAIT) == 1_001


def test_time_goes_on_while_the_clock_is_behind(catalog: Any) -> None:
    clock, elapsed = [3_600_000_000], [0]
    store = catalog.open(clock=lambda: clock[0], elapsed=lambda: elapsed[0])
    assert store.write(lambda tx: tx.now).result(WAIT) == store.now() == 3_600_000_000
    clock[0] = 0
    elapsed[0] += 2_000_000
    assert store.write(lambda tx: tx.now).result(WAIT) == store.now() == 3_602_000_000
    store.write(put(app("apps/a"))).result(WAIT)
    store = catalog.reopen(clock=lambda: clock[0], elapsed=lambda: elapsed[0])
    elapsed[0] += 1_000_000
    assert store.now() == 3_603_000_000
    clock[0] = 4_000_000_000
    assert store.now() == 4_000_000_000


def test_a_clock_far_behind_the_catalog_is_told(catalog: Any, caplog: pytest.LogCaptureFixture) -> None:
    catalog.open(clock=lambda: 200_000_000)
    assert all(it.levelno < logging.WARNING for it in caplog.records)
    catalog.reopen(clock=lambda: 100_000_000)
    warnings = [it for it in caplog.records if it.levelno >= logging.WARNING]
    assert [it.__dict__["action"] for it in warnings] == ["store.clock_behind"]


def test_concurrent_writers_lose_no_update(catalog: Any) -> None:
    store = catalog.open()
    store.write(put(app("apps/a", generation=0))).result(WAIT)
    revisions: list[int] = []

    def count(tx: Transaction) -> int:
        tx.put_app(raised(tx.app("apps/a")))
        return tx.revision

    def client() -> None:
        for _ in range(25):
            revisions.append(store.write(count).result(WAIT))  # noqa: PERF401  # one after the other

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert sorted(revisions) == list(range(min(revisions), min(revisions) + 400))
    record = catalog.reopen().mirror.apps.get("apps/a")
    assert (record.generation, record.revision) == (400, max(revisions))


def test_a_command_cancelled_while_it_waits_is_not_run(store: CatalogStore) -> None:
    with one_batch(store):
        unwanted = store.write(put(app("apps/unwanted")))
        assert unwanted.cancel()
    store.write(put(app("apps/a"))).result(WAIT)
    assert list(contents(store.mirror.apps)) == ["apps/a"]


def test_too_many_waiting_commands_are_refused(store: CatalogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "QUEUE", 3)
    with one_batch(store):
        accepted = [store.write(put(app(f"apps/a{number}"))) for number in range(3)]
        refused = store.write(put(app("apps/refused")))
        assert reason(refused) == "SERVER_BUSY"
    assert [future.result(WAIT) for future in accepted]
    assert store.write(put(app("apps/later"))).result(WAIT)


def test_closing_finishes_what_was_accepted_and_refuses_the_rest(catalog: Any) -> None:
    store = catalog.open()
    with one_batch(store):
        accepted = [store.write(put(app(f"apps/a{number}"))) for number in range(300)]
        closing = threading.Thread(target=store.close)
        closing.start()
    closing.join(WAIT)
    assert all(future.result(0) for future in accepted)
    assert reason(store.write(put(app("apps/late")))) == "SHUTTING_DOWN"
    store.close()
    assert len(catalog.reopen().mirror.apps) == 300


def test_a_callback_on_a_future_may_write(store: CatalogStore) -> None:
    done: Future[int] = Future()

    def follow(first: Future[int]) -> None:
        second = store.write(put(raised(store.mirror.apps.get("apps/a"))))
        second.add_done_callback(lambda it: done.set_result(it.result()))

    store.write(put(app("apps/a"))).add_done_callback(follow)
    assert done.result(WAIT) == store.mirror.apps.revision

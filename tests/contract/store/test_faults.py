"""What a commit that fails, or whose answer is lost, does: nothing acknowledged lost, nothing invented."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from sqlalchemy import insert, update
from sqlalchemy.exc import OperationalError

from services.control_plane.store import writer
from services.control_plane.store.errors import StoreError
from services.control_plane.store.interface import Transaction
from services.control_plane.store.sql.tables import AppRow, ChangeRow, MetaRow, table_of
from services.control_plane.store.sql_store import SqlCatalogStore
from services.rpc.errors import SupervisorError
from tests.contract.store.samples import WAIT, app, contents, put, snapshot
from tests.eventually import eventually_blocking


class Faults:
    """Breaks the store's commits and connections, as told."""

    def __init__(self, store: SqlCatalogStore, monkeypatch: pytest.MonkeyPatch) -> None:
        engine, runner = store._database.writer, store._database.runner
        self.commits: list[str] = []
        """What becomes of each next commit: `lost` (not done) or `unheard` (done); both raise.

        With `, gone` after it the database cannot be reached from then on.
        """
        self.unreachable = False
        run, run_and_commit, connect = runner.run, runner.run_and_commit, engine.connect

        def commit(connection: Any, steps: Any) -> Any:
            fate = self.commits.pop(0) if self.commits else ""
            found = (run if fate.startswith("lost") else run_and_commit)(connection, steps)
            if fate:
                self.unreachable = fate.endswith("gone")
                raise OperationalError("commit", {}, Exception("disk I/O error"))
            return found

        def do_connect() -> Any:
            if self.unreachable:
                raise OperationalError("connect", {}, Exception("unreachable"))
            return connect()

        monkeypatch.setattr(runner, "run_and_commit", commit)
        monkeypatch.setattr(engine, "connect", do_connect)


@pytest.fixture
def faults(store: SqlCatalogStore, monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(store, monkeypatch)


def is_unavailable(future: Future[Any]) -> bool:
    with pytest.raises(SupervisorError) as caught:
        future.result(WAIT)
    return caught.value.reason == "STORE_UNAVAILABLE" and caught.value.retry_after is not None


def test_a_lost_commit_fails_its_commands_and_the_next_one_works(
    catalog: Any, store: SqlCatalogStore, faults: Faults
) -> None:
    first = store.write(put(app("apps/a"))).result(WAIT)
    known = snapshot(store.mirror)
    faults.commits = ["lost"]
    assert is_unavailable(store.write(put(app("apps/lost", domains=("x.example",)))))
    assert snapshot(store.mirror) == known
    assert store.mirror.apps.revision == first
    assert store.write(put(app("apps/b", domains=("x.example",)))).result(WAIT) == first + 1
    assert list(contents(catalog.reopen().mirror.apps)) == ["apps/a", "apps/b"]


def test_a_commit_whose_answer_was_lost_counts_as_done(
    catalog: Any, store: SqlCatalogStore, faults: Faults
) -> None:
    faults.commits = ["unheard"]
    revision = store.write(put(app("apps/a"))).result(WAIT)
    assert store.mirror.apps.revision == revision
    assert store.write(put(app("apps/b"))).result(WAIT) == revision + 1
    known = snapshot(store.mirror)
    assert snapshot(catalog.reopen().mirror) == known


def test_a_commit_of_unknown_outcome_is_looked_up_as_soon_as_that_is_possible(
    catalog: Any, store: SqlCatalogStore, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "DOUBT_SECONDS", 0.01)
    faults.commits = ["unheard, gone"]
    assert is_unavailable(store.write(put(app("apps/a", domains=("x.example",)))))
    assert is_unavailable(store.write(put(app("apps/b"))))
    assert not contents(store.mirror.apps)
    faults.unreachable = False
    eventually_blocking(lambda: store.mirror.apps.get("apps/a") is not None)
    with pytest.raises(SupervisorError, match="belongs to another app"):
        store.write(put(app("apps/c", domains=("x.example",)))).result(WAIT)
    known = snapshot(store.mirror)
    assert snapshot(catalog.reopen().mirror) == known


def test_a_commit_that_turns_out_lost_leaves_its_revision_to_the_next(
    store: SqlCatalogStore, faults: Faults
) -> None:
    head = store.mirror.apps.revision
    faults.commits = ["lost, gone"]
    assert is_unavailable(store.write(put(app("apps/a"))))
    assert is_unavailable(store.write(lambda tx: None))
    faults.unreachable = False
    assert store.write(put(app("apps/b"))).result(WAIT) == head + 1
    assert list(contents(store.mirror.apps)) == ["apps/b"]


def test_an_unreachable_database_fails_a_commands_read(store: SqlCatalogStore, faults: Faults) -> None:
    def swallows(tx: Transaction) -> str:
        try:
            tx.request("r")
        except Exception:
            return "swallowed"
        return "read"

    faults.commits = ["lost, gone"]
    assert is_unavailable(store.write(put(app("apps/a"))))
    assert is_unavailable(store.write(swallows))
    faults.unreachable = False
    assert store.write(swallows).result(WAIT) == "read"


def test_what_another_program_commits_is_followed(catalog: Any) -> None:
    store = catalog.open()
    revision = store.write(put(app("apps/a"))).result(WAIT)
    with store._database.writer.begin() as connection:
        connection.execute(update(table_of(AppRow)).values(generation=9, revision=revision + 1))
        change = {"revision": revision + 1, "kind": "app", "key": "apps/a", "deleted": False, "time": 1}
        connection.execute(insert(table_of(ChangeRow)), change)
        connection.execute(update(table_of(MetaRow)).values(revision=revision + 1))
    assert store.write(lambda tx: tx.app("apps/a").generation).result(WAIT) == 9
    assert store.write(put(app("apps/b"))).result(WAIT) == revision + 2
    known = snapshot(store.mirror)
    assert snapshot(catalog.reopen().mirror) == known


def test_a_database_that_lost_what_was_committed_is_written_no_more(catalog: Any) -> None:
    ended: list[BaseException] = []
    store = catalog.open(on_fatal=ended.append)
    revision = store.write(put(app("apps/a"))).result(WAIT)
    with store._database.writer.begin() as connection:
        connection.execute(update(table_of(MetaRow)).values(revision=revision - 1))
    assert is_unavailable(store.write(put(app("apps/b"))))
    eventually_blocking(lambda: bool(ended))
    assert isinstance(ended[0], StoreError)
    assert is_unavailable(store.write(put(app("apps/c"))))
    assert list(contents(store.mirror.apps)) == ["apps/a"]


def test_a_writer_that_dies_fails_all_that_waits_and_says_so(
    catalog: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[BaseException] = []
    store = catalog.open(on_fatal=ended.append)
    running, go = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        tx.put_app(app("apps/a"))
        running.set()
        assert go.wait(WAIT)

    held = store.write(hold)
    assert running.wait(WAIT)
    waiting = [store.write(put(app(f"apps/b{number}"))) for number in range(300)]
    monkeypatch.setattr(store.mirror, "apply_all", lambda *_, **__: {}["a bug of ours"])
    go.set()
    assert is_unavailable(held)
    assert all(is_unavailable(future) for future in waiting)
    eventually_blocking(lambda: bool(ended))
    assert isinstance(ended[0], KeyError)
    assert [it.levelname for it in caplog.records if it.levelno >= logging.WARNING] == ["CRITICAL"]
    assert is_unavailable(store.write(put(app("apps/late"))))

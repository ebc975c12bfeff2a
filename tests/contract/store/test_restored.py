"""A catalog that goes on from an older copy: what its lost history told is told apart from what is there."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from services.control_plane.catalog.positions import position_of, token_at
from services.control_plane.store.sql_store import SqlCatalogStore
from services.rpc.errors import SupervisorError
from tests.contract.store.samples import WAIT, app, put, raised


class Backup:
    """All rows of a catalog, put back in place of what is there then: what a restored dump or file is."""

    TABLES = (
        "database_servers", "environments", "certificates", "nodes", "apps", "placements", "app_domains",
        "operations", "app_events", "requests", "changes", "histories", "writers", "leadership", "meta",
    )  # fmt: skip

    def __init__(self, store: SqlCatalogStore) -> None:
        with store._database.reader.connect() as connection:
            self.rows = {
                name: connection.execute(text(f"SELECT * FROM {name}")).mappings().all()
                for name in self.TABLES
            }

    def restore(self, store: SqlCatalogStore) -> None:
        with store._database.writer.begin() as connection:
            for name in reversed(self.TABLES):
                connection.execute(text(f"DELETE FROM {name}"))
            for name, rows in self.rows.items():
                for row in rows:
                    columns = ", ".join(row)
                    values = ", ".join(f":{column}" for column in row)
                    connection.execute(text(f"INSERT INTO {name} ({columns}) VALUES ({values})"), dict(row))


def generation(number: int) -> Any:
    def command(tx: Any) -> Any:
        record = tx.app("apps/a")
        return tx.put_app(app("apps/a", generation=number) if record is None else raised(record))

    return command


async def test_a_token_of_a_lost_history_is_refused_and_one_from_before_goes_on(catalog: Any) -> None:
    store = catalog.open()
    kept = token_at(store, store.write(put(app("apps/a"))).result(WAIT), "")
    backup = Backup(store)
    lost = [
        token_at(store, store.write(put(app(f"apps/lost{number}"))).result(WAIT), "") for number in range(3)
    ]
    backup.restore(store)
    store = catalog.reopen()
    with pytest.raises(SupervisorError) as caught:
        await position_of(store, lost[-1], "")
    assert caught.value.reason == "RESUME_TOKEN_EXPIRED"
    for number in range(5):
        store.write(put(app(f"apps/new{number}"))).result(WAIT)
    for token in lost:
        with pytest.raises(SupervisorError) as caught:
            await position_of(store, token, "")
        assert caught.value.reason == "RESUME_TOKEN_EXPIRED"
    position = await position_of(store, kept, "")
    assert [entry.key for entry in store.mirror.apps.since(position)] == [f"apps/new{it}" for it in range(5)]


def test_an_etag_of_a_lost_generation_is_no_longer_the_apps(catalog: Any) -> None:
    store = catalog.open()
    first = store.write(generation(1)).result(WAIT).public.etag
    backup = Backup(store)
    lost = store.write(generation(2)).result(WAIT).public.etag
    backup.restore(store)
    store = catalog.reopen()
    assert store.mirror.apps.get("apps/a").public.etag == first
    again = store.write(generation(2)).result(WAIT).public.etag
    assert again != lost
    assert store.mirror.apps.get("apps/a").public.etag == again
    assert catalog.reopen().mirror.apps.get("apps/a").public.etag == again


async def test_tokens_and_etags_outlive_any_number_of_openings(catalog: Any) -> None:
    store = catalog.open()
    etag = store.write(generation(1)).result(WAIT).public.etag
    tokens = []
    for number in range(4):
        tokens.append(token_at(store, store.write(put(app(f"apps/b{number}"))).result(WAIT), ""))
        store = catalog.reopen()
    assert store.mirror.apps.get("apps/a").public.etag == etag
    assert [await position_of(store, token, "") for token in tokens] == [3, 4, 5, 6]
    assert len(store.histories.ids) == 5


def test_a_process_that_runs_while_the_database_is_restored_ends_even_if_others_have_gone_on(
    catalog: Any,
) -> None:
    """It knows revisions that are not there any more, also where their numbers have been given again."""
    ended: list[BaseException] = []
    store = catalog.open(on_fatal=ended.append)
    backup = Backup(store)
    for number in range(3):
        store.write(put(app(f"apps/lost{number}"))).result(WAIT)
    known = store._state
    backup.restore(store)
    with store._database.writer.begin() as connection:
        revision = known.revision + 2
        connection.execute(
            text("INSERT INTO histories (id, after, time) SELECT 'other', revision, time FROM meta")
        )
        connection.execute(text(f"UPDATE meta SET revision = {revision}, history = 'other'"))
    with pytest.raises(SupervisorError) as caught:
        store.write(put(app("apps/late"))).result(WAIT)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert "lost revision" in str(ended[0])

"""Statements about many rows: what they say, in how few, and what PostgreSQL is given for a column."""

from __future__ import annotations

import struct
from collections import Counter

import psycopg
import pytest
from sqlalchemy.dialects import postgresql, sqlite

from services.control_plane.store.random_ids import RandomBytes, new_suffix, new_uid
from services.control_plane.store.sql.array_dumpers import register_columns
from services.control_plane.store.sql.arrays import BooleanColumn, BytesColumn, IntegerColumn, TextColumn
from services.control_plane.store.sql.bulk import VARIABLES, Insert
from services.control_plane.store.sql.tables import AppDomainRow, OperationRow, table_of
from tests.postgresql import Server


@pytest.mark.parametrize("count", [1, 2, 3, 71, 1000])
def test_sqlite_gets_each_row_once_in_few_statements_within_its_limits(count: int) -> None:
    insert = Insert(OperationRow, sqlite.dialect(), replaces=True)
    names = [column.name for column in table_of(OperationRow).columns]
    rows = [{name: (name, number) for name in names} for number in range(count)]
    steps = list(insert.steps(rows))
    assert [value for step in steps for value in step.parameters] == [
        row[name] for row in rows for name in names
    ]
    assert all(step.sql.count("?") == len(step.parameters) <= VARIABLES for step in steps)
    assert max(Counter(step.sql for step in steps).values()) <= 1 + count * len(names) // VARIABLES * 2
    assert all(step.sql.endswith("revision = excluded.revision") for step in steps)


def test_postgresql_gets_all_rows_in_one_statement() -> None:
    rows = [{"domain": f"{number}.example", "app": "apps/a"} for number in range(1000)]
    (step,) = Insert(AppDomainRow, postgresql.dialect()).steps(rows)
    assert [len(column) for column in step.parameters] == [1000, 1000]
    assert step.sql.endswith("SELECT * FROM unnest(%s::text[], %s::text[])")


def test_columns_arrive_as_they_were_sent(postgresql: Server) -> None:
    columns = (
        TextColumn(["a", None, "ü\\,{}\"'", ""]),
        BytesColumn([b"\0\xff", b"", None]),
        IntegerColumn([0, -1, None, 2**63 - 1, -(2**63)]),
        BooleanColumn([True, None, False]),
        TextColumn(),
        IntegerColumn([None, None]),
    )
    with psycopg.connect(postgresql.url) as connection:
        register_columns(connection)
        for column in columns:
            found = connection.execute(f"SELECT %s::{column.sql}", (column,)).fetchone()
            assert found == (list(column),)


def test_what_no_column_holds_is_an_error_of_its_own(postgresql: Server) -> None:
    with psycopg.connect(postgresql.url) as connection:
        register_columns(connection)
        with pytest.raises(psycopg.DataError):
            connection.execute("SELECT %s::text[]", (TextColumn(["nul\0"]),))
        connection.rollback()
        with pytest.raises(struct.error):
            connection.execute("SELECT %s::bigint[]", (IntegerColumn([2**63]),))


def test_random_ids_are_given_once() -> None:
    random = RandomBytes(ahead=16)
    assert len({random.take(5) for _ in range(1000)}) == 1000
    ids = {new_uid() for _ in range(1000)}
    assert len(ids) == 1000
    assert {(len(it), it[14]) for it in ids} == {(36, "4")}
    assert len(new_suffix()) == 12

"""Statements about any number of rows, as text: PostgreSQL takes them as arrays, SQLite one after another.

Sent as text they cost a third of statements that SQLAlchemy builds each time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import Dialect

from services.control_plane.store.sql.arrays import COLUMNS, Column, TextColumn
from services.control_plane.store.sql.tables import CatalogTable, table_of


@dataclass(frozen=True, slots=True)
class Step:
    """One statement; its parameters are a tuple, or a list of them to run it for each."""

    sql: str
    parameters: Any = ()


class Insert:
    """Inserts rows; those whose key is there already are replaced, or refused."""

    def __init__(
        self,
        row: type[CatalogTable],
        dialect: Dialect,
        *,
        replaces: bool = False,
        fixed: Collection[str] = (),
    ) -> None:
        """`fixed` columns never change in the life of a row: leaving them out spares their index."""
        table, quote = table_of(row), dialect.identifier_preparer.quote
        names = [column.name for column in table.columns]
        keys = [column.name for column in table.primary_key]
        self._values = itemgetter(*names)
        self._columns: list[type[Column]] | None = None
        source = f"VALUES ({', '.join('?' for _ in names)})"
        if dialect.name == "postgresql":
            self._columns = [COLUMNS[column.type.compile(dialect)] for column in table.columns]
            arrays = ", ".join(f"%s::{column.sql}" for column in self._columns)
            source = f"SELECT * FROM unnest({arrays})"  # noqa: S608 - names of our own tables
        conflict = ""
        if replaces:
            changed = [quote(name) for name in names if name not in keys and name not in fixed]
            sets = ", ".join(f"{name} = excluded.{name}" for name in changed)
            conflict = f" ON CONFLICT ({', '.join(map(quote, keys))}) DO UPDATE SET {sets}"
        self._sql = f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, names))}) {source}{conflict}"

    def step(self, rows: Sequence[Mapping[str, Any]]) -> Step:
        """Return the statement for some rows, by the names of their columns."""
        values = [self._values(row) for row in rows]
        if self._columns is None:
            return Step(self._sql, values)
        columns = zip(self._columns, zip(*values, strict=True), strict=True)
        return Step(self._sql, tuple(kind(column) for kind, column in columns))


class ByKeys:
    """A statement about the rows of some keys: of the first column of a table's primary key."""

    def __init__(self, begin: str, row: type[CatalogTable], dialect: Dialect, *, end: str = "") -> None:
        """`begin` is what stands before WHERE, `end` what follows it; `{columns}` are all of the table's."""
        table, quote = table_of(row), dialect.identifier_preparer.quote
        self._arrays = dialect.name == "postgresql"
        columns = ", ".join(quote(column.name) for column in table.columns)
        among = "= ANY(%s)" if self._arrays else "IN (SELECT value FROM json_each(?))"
        key = quote(next(iter(table.primary_key)).name)
        self._sql = f"{begin.format(columns=columns)} FROM {quote(table.name)} WHERE {key} {among}{end}"

    def step(self, keys: Collection[str], *more: Any) -> Step:
        """Return the statement for some keys."""
        return Step(self._sql, (TextColumn(keys) if self._arrays else json.dumps(list(keys)), *more))

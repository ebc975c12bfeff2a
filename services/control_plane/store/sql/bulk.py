"""Statements about any number of rows, as text: PostgreSQL takes them as arrays, SQLite as lists of values.

Sent as text they cost a third of statements that SQLAlchemy builds each time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

from sqlalchemy import Dialect

from services.control_plane.store.sql.arrays import COLUMNS, Column, TextColumn
from services.control_plane.store.sql.tables import CatalogTable, table_of


@dataclass(frozen=True, slots=True)
class Step:
    """One statement with its parameters."""

    sql: str
    parameters: tuple[Any, ...] = ()


VARIABLES = 999
"""Parameters of one statement that every SQLite takes."""


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
        self._begin = f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, names))}) "
        self._end = ""
        if replaces:
            changed = [quote(name) for name in names if name not in keys and name not in fixed]
            sets = ", ".join(f"{name} = excluded.{name}" for name in changed)
            self._end = f" ON CONFLICT ({', '.join(map(quote, keys))}) DO UPDATE SET {sets}"
        self._columns: list[type[Column]] | None = None
        if dialect.name == "postgresql":
            self._columns = [COLUMNS[column.type.compile(dialect)] for column in table.columns]
        self._width = len(names)
        self._texts: dict[int, str] = {}

    def steps(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
        """Yield the statements for some rows, by the names of their columns."""
        values = [self._values(row) for row in rows]
        if self._columns is not None:
            columns = zip(self._columns, zip(*values, strict=True), strict=True)
            yield Step(self._text(0), tuple(kind(column) for kind, column in columns))
            return
        # Between two rows of one statement SQLite lets no other thread have the interpreter. Powers of two
        # are few statements, which stay compiled.
        most, start = VARIABLES // self._width, 0
        while start < len(values):
            count = 1 << (min(most, len(values) - start).bit_length() - 1)
            yield Step(self._text(count), tuple(chain.from_iterable(values[start : start + count])))
            start += count

    def _text(self, rows: int) -> str:
        known = self._texts.get(rows)
        if known is None:
            if self._columns is not None:
                arrays = ", ".join(f"%s::{column.sql}" for column in self._columns)
                source = f"SELECT * FROM unnest({arrays})"  # noqa: S608 - names of our own tables
            else:
                source = "VALUES " + ", ".join([f"({', '.join('?' * self._width)})"] * rows)
            known = self._texts[rows] = f"{self._begin}{source}{self._end}"
        return known


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

"""Columns of values: a statement to PostgreSQL takes any number of rows as a few parameters.

Without psycopg, which a catalog in SQLite never loads: `array_dumpers` tells it how to send them.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Column(list[Any]):
    """The values of one column, None for null."""

    sql: ClassVar[str]
    """The array's type, as a statement casts it."""


class TextColumn(Column):
    """Strings."""

    sql = "text[]"


class BytesColumn(Column):
    """Bytes."""

    sql = "bytea[]"


class IntegerColumn(Column):
    """Integers of up to 64 bits."""

    sql = "bigint[]"


class BooleanColumn(Column):
    """Booleans."""

    sql = "boolean[]"


COLUMNS: dict[str, type[Column]] = {
    "VARCHAR": TextColumn,
    "BYTEA": BytesColumn,
    "BIGINT": IntegerColumn,
    "INTEGER": IntegerColumn,
    "BOOLEAN": BooleanColumn,
}
"""By the type that the table's column has."""

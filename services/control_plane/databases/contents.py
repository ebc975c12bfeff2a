"""Tells what an app's database has, so that a copy can be compared with it: objects, rows and sequences."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from services.control_plane.databases.connecting import CONNECT_SECONDS, Connection
from services.control_plane.databases.names import libpq_url
from services.rpc.errors import SupervisorError

Contents = Mapping[str, str]
"""By object, as people name it, what is compared of it."""

# The same text of the same value, whatever the servers' own settings are.
_OPTIONS = (
    "-c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex "
    "-c search_path=pg_catalog -c default_transaction_read_only=on -c row_security=off"
)

_IN_SCOPE = """
n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND (%(schema)s = '' OR n.nspname = %(schema)s)
"""
_OF_EXTENSION = """
EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = {of}::regclass AND d.objid = o.oid AND d.deptype = 'e')
"""
_OBJECTS = f"""
SELECT 'relation ' || o.oid::regclass::text, o.relkind::text
FROM pg_class AS o JOIN pg_namespace AS n ON n.oid = o.relnamespace
WHERE {_IN_SCOPE} AND NOT {_OF_EXTENSION.format(of="'pg_class'")}
UNION ALL
SELECT 'column ' || o.oid::regclass::text || '.' || a.attname,
    concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
        pg_get_expr(d.adbin, d.adrelid))
FROM pg_class AS o JOIN pg_namespace AS n ON n.oid = o.relnamespace
JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = o.oid AND d.adnum = a.attnum
WHERE {_IN_SCOPE} AND o.relkind IN ('r', 'p', 'c') AND NOT {_OF_EXTENSION.format(of="'pg_class'")}
UNION ALL
SELECT 'constraint ' || o.conname || ' of ' || o.conrelid::regclass::text, pg_get_constraintdef(o.oid)
FROM pg_constraint AS o JOIN pg_namespace AS n ON n.oid = o.connamespace
WHERE {_IN_SCOPE} AND o.contype <> 'n'
UNION ALL
SELECT 'index ' || o.oid::regclass::text, pg_get_indexdef(o.oid)
FROM pg_class AS o JOIN pg_namespace AS n ON n.oid = o.relnamespace
WHERE {_IN_SCOPE} AND o.relkind = 'i' AND NOT {_OF_EXTENSION.format(of="'pg_class'")}
UNION ALL
SELECT 'function ' || o.oid::regprocedure::text, md5(coalesce(o.prosrc, ''))
FROM pg_proc AS o JOIN pg_namespace AS n ON n.oid = o.pronamespace
WHERE {_IN_SCOPE} AND NOT {_OF_EXTENSION.format(of="'pg_proc'")}
UNION ALL
SELECT 'trigger ' || o.tgname || ' of ' || o.tgrelid::regclass::text, o.tgenabled::text
FROM pg_trigger AS o JOIN pg_class AS c ON c.oid = o.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE {_IN_SCOPE} AND NOT o.tgisinternal
UNION ALL
SELECT 'type ' || format_type(o.oid, NULL), concat_ws(' ', o.typtype,
    (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = o.oid))
FROM pg_type AS o JOIN pg_namespace AS n ON n.oid = o.typnamespace
WHERE {_IN_SCOPE} AND o.typtype IN ('d', 'e', 'r') AND NOT {_OF_EXTENSION.format(of="'pg_type'")}
UNION ALL
SELECT 'sequence ' || format('%%I.%%I', s.schemaname, s.sequencename),
    concat_ws(' ', s.data_type, s.start_value, s.min_value, s.max_value, s.increment_by, s.cycle,
        s.last_value)
FROM pg_sequences AS s JOIN pg_namespace AS n ON n.nspname = s.schemaname
WHERE {_IN_SCOPE}
UNION ALL
SELECT 'large object ' || o.oid, '' FROM pg_largeobject_metadata AS o
WHERE %(schema)s = '' AND pg_get_userbyid(o.lomowner) = current_user
"""  # noqa: S608 - of constants
_TABLES = f"""
SELECT n.nspname, o.relname FROM pg_class AS o JOIN pg_namespace AS n ON n.oid = o.relnamespace
WHERE {_IN_SCOPE} AND o.relkind IN ('r', 'm') AND NOT {_OF_EXTENSION.format(of="'pg_class'")}
ORDER BY n.nspname, o.relname
"""  # noqa: S608 - of constants
_ROWS = """
SELECT count(*)::text || ' rows', coalesce(sum(
    ('x' || left(encode(sha256(convert_to(({row}.*)::text, 'UTF8')), 'hex'), 15))::bit(60)::bigint::numeric
), 0)::text
FROM ONLY {table} AS {row}
"""


async def contents_of(url: str, schema: str) -> Contents:
    """Return what a login sees in its database: of one schema, or of all where that is empty.

    Of each table the number of its rows and a sum of their SHA-256. Raises DATABASE_NOT_MOVED.
    """
    try:
        async with _connected(url) as connection:
            cursor = await connection.execute(_OBJECTS, {"schema": schema})
            found = {str(name): str(told) for name, told in await cursor.fetchall()}
            cursor = await connection.execute(_TABLES, {"schema": schema})
            for table in await cursor.fetchall():
                query = SQL(_ROWS).format(table=Identifier(*table), row=Identifier("a row"))
                (row,) = await (await connection.execute(query)).fetchall()
                found[f"rows of {'.'.join(table)}"] = ", ".join(row)
    except (psycopg.Error, OSError, TimeoutError) as failure:
        told = failure.diag.message_primary if isinstance(failure, psycopg.Error) else None
        why = told or "the connection broke"
        raise SupervisorError(
            "DATABASE_NOT_MOVED", f"What it has could not be read: {why}.", metadata={"why": why}
        ) from failure
    return found


def first_difference(source: Contents, target: Contents) -> str:
    """Return how a copy differs from what it is of, in words; empty if it does not."""
    for name in sorted(source.keys() | target.keys()):
        there, here = source.get(name), target.get(name)
        if there == here:
            continue
        if here is None:
            return f"{name} is not in the copy"
        return f"{name} is in the copy alone" if there is None else f"{name}: {here} in the copy, not {there}"
    return ""


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    connection: Connection = await AsyncConnection.connect(
        libpq_url(url), autocommit=True, connect_timeout=CONNECT_SECONDS,
        application_name="appsupervisor move", options=_OPTIONS,
    )  # fmt: skip
    try:
        yield connection
    finally:
        await connection.close()

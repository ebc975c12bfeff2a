"""Extensions that apps ask for and their server allows, made by its administrator: no app has to be one.

What is no longer asked for stays: something may depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Identifier

from services.control_plane.databases.connecting import Connection

SCHEMA = "extensions"
"""Where those are that apps with mode SCHEMA share, in their one database; they can change nothing in it."""


async def provide(connection: Connection, names: Sequence[str], schema: str, owner: str = "") -> None:
    """Have the database of a connection have extensions in a schema, owned by `owner` or the administrator.

    Raises `psycopg.Error`: where the administrator may not, or the server does not have one.
    """
    async with connection.transaction():
        # Of two that make the same one would fail.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('as_extensions', 0))")
        cursor = await connection.execute("SELECT extname::text FROM pg_extension")
        there = {name for (name,) in await cursor.fetchall()}
        missing = [name for name in names if name not in there]
        if schema == SCHEMA and (missing or not await _has_schema(connection)):
            await connection.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(SCHEMA)))
            await connection.execute(SQL("GRANT USAGE ON SCHEMA {} TO PUBLIC").format(Identifier(SCHEMA)))
        if missing and owner:
            await connection.execute(SQL("SET LOCAL ROLE {}").format(Identifier(owner)))
        for name in missing:
            create = SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {}")
            await connection.execute(create.format(Identifier(name), Identifier(schema)))


async def _has_schema(connection: Connection) -> bool:
    cursor = await connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (SCHEMA,))
    return bool(await cursor.fetchall())


async def there_are(connection: Connection, owner: str) -> list[tuple[str, str, bool]]:
    """Return a database's extensions, but plpgsql: name, schema, and whether `owner` has made it."""
    cursor = await connection.execute(
        """
        SELECT e.extname::text, n.nspname::text, pg_get_userbyid(e.extowner) = %s
        FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
        WHERE e.extname <> 'plpgsql' ORDER BY e.oid
        """,
        (owner,),
    )
    return [(name, schema, own) for name, schema, own in await cursor.fetchall()]

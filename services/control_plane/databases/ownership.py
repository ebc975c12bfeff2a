"""Gives an app's owner all that is in a database of its own, object by object.

Not by REASSIGN OWNED: that takes other databases of the same role along, and nothing of a server's first
superuser.
"""

from __future__ import annotations

from typing import Final

from services.control_plane.databases.connecting import Connection

AT_ONCE = 100
"""Objects in one transaction: each is locked until it ends."""

# In an order in which each may be given: who is to own something may make such in its schema. What only a
# superuser can own stays (event triggers, languages), and so do extensions with all that is theirs; indexes,
# sequences of columns, types of tables and of arrays go with what they are of.
_FOREIGN: Final = """
WITH held (classid, objid, owner, turn) AS (
    SELECT 'pg_namespace'::regclass, oid, nspowner, 1 FROM pg_namespace
    WHERE oid >= 16384 OR nspname = 'public' AND nspowner <> 'pg_database_owner'::regrole
    UNION ALL
    SELECT 'pg_type'::regclass, oid, typowner, 2 FROM pg_type
    WHERE typtype IN ('d', 'e', 'r') OR typtype = 'b' AND typcategory <> 'A'
    UNION ALL
    SELECT 'pg_class'::regclass, c.oid, relowner, 3 FROM pg_class AS c
    WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'c') OR relkind = 'S' AND NOT EXISTS (
        SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))
    UNION ALL SELECT 'pg_proc'::regclass, oid, proowner, 4 FROM pg_proc
    UNION ALL SELECT 'pg_operator'::regclass, oid, oprowner, 5 FROM pg_operator
    UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfowner, 5 FROM pg_opfamily
    UNION ALL SELECT 'pg_opclass'::regclass, oid, opcowner, 5 FROM pg_opclass
    UNION ALL SELECT 'pg_collation'::regclass, oid, collowner, 5 FROM pg_collation
    UNION ALL SELECT 'pg_conversion'::regclass, oid, conowner, 5 FROM pg_conversion
    UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictowner, 5 FROM pg_ts_dict
    UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgowner, 5 FROM pg_ts_config
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxowner, 5 FROM pg_statistic_ext
    UNION ALL SELECT 'pg_largeobject'::regclass, oid, lomowner, 5 FROM pg_largeobject_metadata
)
SELECT format(
    'ALTER %%s %%s OWNER TO %%I',
    CASE type WHEN 'composite type' THEN 'type' WHEN 'statistics object' THEN 'statistics' ELSE type END,
    identity, %(owner)s::text
)
FROM held, pg_identify_object(classid, objid, 0)
WHERE owner <> (SELECT oid FROM pg_roles WHERE rolname = %(owner)s)
    AND (objid >= 16384 OR classid = 'pg_namespace'::regclass OR classid = 'pg_largeobject'::regclass)
    AND NOT EXISTS (
        SELECT FROM pg_depend AS d
        WHERE d.classid = held.classid AND d.objid = held.objid AND d.deptype = 'e')
ORDER BY turn, objid
"""


async def give_all(connection: Connection, owner: str) -> None:
    """Have a role own all that is in the connection's database; not in a transaction.

    Raises `psycopg.Error`, InsufficientPrivilege where the connection's user may not; a repeat goes on.
    """
    cursor = await connection.execute(_FOREIGN, {"owner": owner})
    commands = [command for (command,) in await cursor.fetchall()]
    for begin in range(0, len(commands), AT_ONCE):
        # Bytes, as nothing in the program's text: the server itself has quoted what is in them.
        await connection.execute("; ".join(commands[begin : begin + AT_ONCE]).encode())

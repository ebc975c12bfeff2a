"""Connections to database servers as their administrator, with a limit on everything that is waited for.

What goes wrong is told by kind, never in the driver's words: they may quote a part of a password.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from services.control_plane.databases.names import libpq_url
from services.control_plane.store.records import DatabaseServerRecord
from services.rpc.errors import SupervisorError

Connection: TypeAlias = AsyncConnection[tuple[Any, ...]]

CONNECT_SECONDS = 3
STEP_SECONDS = 20
"""How long one statement may take: a schema of many tables is dropped in one."""

_OPTIONS = (
    f"-c statement_timeout={STEP_SECONDS}s -c lock_timeout=5s -c idle_in_transaction_session_timeout=10s"
    # An app may set these of a database of its own, for whoever connects to it: a function of its making
    # would run in the place of PostgreSQL's, as the administrator.
    " -c search_path=pg_catalog,pg_temp -c role=none -c default_transaction_read_only=off"
)
# From 16 on a role that creates another is not by itself able to act as that.
_SELF_GRANT = """
SELECT set_config('createrole_self_grant', 'set, inherit', false)
WHERE current_setting('server_version_num')::int >= 160000
"""


@asynccontextmanager
async def connected(server: DatabaseServerRecord, database: str = "") -> AsyncIterator[Connection]:
    """Give a connection, without a transaction, to a database of a server: by default the one of its URL.

    Raises SupervisorError DATABASE_SERVER_UNREACHABLE when it cannot be made or breaks, DATABASE_UNAVAILABLE
    when a statement fails.
    """
    other = {"dbname": database} if database else {}
    try:
        url = make_conninfo(libpq_url(server.admin_url), **other)
        async with asyncio.timeout(CONNECT_SECONDS + 1):
            connection: Connection = await AsyncConnection.connect(
                url, autocommit=True, connect_timeout=CONNECT_SECONDS,
                application_name="appsupervisor databases", options=_OPTIONS,
            )  # fmt: skip
    except (psycopg.Error, OSError, TimeoutError, ValueError) as failure:
        raise _unreachable(server, failure) from None
    try:
        await connection.execute(_SELF_GRANT)
        yield connection
    except psycopg.Error as failure:
        if connection.broken:
            raise _unreachable(server, failure) from None
        raise failed(server, failure) from failure
    finally:
        # Not closed politely: a server that hangs would hold up whoever closes.
        await connection.close()


class DatabaseClosedError(SupervisorError):
    """An app's own database takes no connection, though its server is well: its owner may close it."""

    def __init__(self, server: DatabaseServerRecord, database: str) -> None:
        why = f"{database} takes no connection of the administrator's"
        text = f"{server.name} refused a step: {why}."
        super().__init__("DATABASE_UNAVAILABLE", text, resource=server.name, metadata={"detail": why})


@asynccontextmanager
async def inside(server: DatabaseServerRecord, database: str) -> AsyncIterator[Connection]:
    """Give a connection to an app's own database on a server that answers.

    Raises DatabaseClosedError when it cannot be made or breaks, and as `connected`.
    """
    try:
        async with connected(server, database) as connection:
            yield connection
    except SupervisorError as failure:
        if failure.reason != "DATABASE_SERVER_UNREACHABLE":
            raise
        raise DatabaseClosedError(server, database) from None


_WHY = {
    "28": "it refuses its administrator's login",
    "3D": "the database that its URL names does not exist",
    "53": "it has no connection left, or no room",
    "57": "it is starting or stopping, or ended the session",
}
"""By the first two characters of SQLSTATE."""


def why(failure: BaseException) -> str:
    """Return the kind of a failure in words, without any of its own."""
    state = getattr(failure, "sqlstate", None) or ""
    return _WHY.get(state[:2], f"it answers with SQLSTATE {state}" if state else "it does not answer")


def _unreachable(server: DatabaseServerRecord, failure: BaseException) -> SupervisorError:
    return SupervisorError(
        "DATABASE_SERVER_UNREACHABLE",
        f"{server.name} cannot be used now: {why(failure)}.",
        resource=server.name,
        metadata={"detail": why(failure)},
    )


def failed(server: DatabaseServerRecord, failure: psycopg.Error) -> SupervisorError:
    """Return the error for a statement that a server refused."""
    told = failure.diag.message_primary or type(failure).__name__
    return SupervisorError(
        "DATABASE_UNAVAILABLE", f"{server.name} refused a step: {told}.", resource=server.name,
        metadata={"sqlstate": failure.sqlstate or "", "detail": told},
    )  # fmt: skip

"""What the reconciler asks for: a database for a start, old logins shut out, the data dropped or kept.

Keeps in memory only which logins of an app may be open. A server that does not answer is left alone for a
moment: its apps must not hold up those of others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from appsupervisor.runtime.v1.runtime_environment_pb2 import Database
from services.control_plane.databases import steps
from services.control_plane.databases.connecting import CONNECT_SECONDS, Connection, connected
from services.control_plane.databases.names import login_of, mark_of, owner_of, password_of, url_of
from services.control_plane.databases.steps import Claim, Login
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, DatabaseServerRecord
from services.rpc.errors import SupervisorError

AT_ONCE = 4
"""Apps that are worked for on one server at a time: more are no faster."""

TURN_SECONDS = 10.0
"""How long an app waits for its turn there."""

REST_SECONDS = 1.0
"""How long a server is left alone that did not answer."""


@dataclass(frozen=True, slots=True)
class Provided:
    """A database for one start."""

    url: str = field(repr=False)
    pool: int
    """Connections that the instance's pool may have."""


class _RestingError(SupervisorError):
    """Told instead of trying: the server has just not answered."""

    def __init__(self, failure: SupervisorError) -> None:
        super().__init__(failure.reason, failure.message, resource=failure.resource)


@dataclass(slots=True)
class _Turn:
    room: asyncio.Semaphore
    revision: int = 0
    """What was known of the server when it did not answer: news of it end its rest."""
    rests_until: float = 0.0
    failure: SupervisorError | None = None


class AppDatabases:
    """Makes, guards and drops apps' databases. Lives on one loop."""

    def __init__(self, mirror: Mirror, clock: Callable[[], float], leader: int) -> None:
        """`clock` gives seconds, monotonic; `leader` rises from leader to leader."""
        self._servers = mirror.database_servers
        self._clock = clock
        self._leader = leader
        self._turns: dict[str, _Turn] = {}
        self._open: dict[str, frozenset[str]] = {}
        """By uid of an app: the logins that may be open. Of an app that is not here nothing is known."""

    async def prepare(
        self, app: AppRecord, epoch: int, keep: Collection[int], *, must_exist: bool
    ) -> Provided:
        """Return the database for a start under an epoch, made if need be and guarded.

        When it returns, no epoch but that one and those to `keep` can write it. Raises SupervisorError
        DATABASE_SERVER_UNREACHABLE, DATABASE_UNAVAILABLE, LEADERSHIP_LOST, and DATA_MISSING if it
        `must_exist` and does not. After any of them a repeat goes on.
        """
        server = self._server_of(app)
        owner, claim, schema = owner_of(app.name, app.uid), self._claim(app), _in_schema(app)
        name = login_of(owner, epoch)
        pool = server.server.app_connections
        login = Login(name, password_of(server.key, name), 2 * pool + 1)
        kept = frozenset({name, *(login_of(owner, other) for other in keep)})
        async with self._at(server) as connection:
            await steps.refuse_catalog(connection, server.name)
            if not schema:
                async with connection.transaction():
                    await steps.claim(connection, owner, claim)
                await steps.make_database(connection, owner, must_exist=must_exist)
            async with connection.transaction():
                await steps.claim(connection, owner, claim)
                if schema:
                    await steps.make_schema(connection, owner, must_exist=must_exist)
                shut = await steps.shut_out(connection, owner, kept)
                await steps.make_login(connection, owner, login, schema=schema)
            await self._end(server, connection, owner, shut, schema=schema)
            database = connection.info.dbname if schema else owner
        self._open[app.uid] = kept
        return Provided(url_of(server.admin_url, name, login.password, database), pool)

    def is_settled(self, app: AppRecord, keep: Collection[int]) -> bool:
        """Tell whether no login of an app can be open but those of the epochs to `keep`."""
        owner = owner_of(app.name, app.uid)
        known = self._open.get(app.uid)
        return known is not None and known <= {login_of(owner, epoch) for epoch in keep}

    async def settle(self, app: AppRecord, keep: Collection[int]) -> None:
        """Shut out all epochs but those to `keep`. Raises as `prepare`."""
        server = self._server_of(app)
        owner = owner_of(app.name, app.uid)
        kept = frozenset(login_of(owner, epoch) for epoch in keep)
        async with self._at(server) as connection:
            await self._shut(server, connection, app, kept)
        self._open[app.uid] = kept

    async def end(self, app: AppRecord, *, drop: bool) -> None:
        """Shut out all of an app's logins and, if it is to `drop`, remove its data. Repeats do nothing.

        Raises SupervisorError DATABASE_SERVER_UNREACHABLE, LEADERSHIP_LOST, DATABASE_NOT_REMOVED.
        """
        server = self._servers.get(app.database_server)
        if server is None:
            return  # it is forgotten with all that is on it
        owner = owner_of(app.name, app.uid)
        try:
            async with self._at(server) as connection:
                there = await self._shut(server, connection, app, frozenset())
                if there and drop and _in_schema(app):
                    async with connection.transaction():
                        await steps.claim(connection, owner, self._claim(app))
                        await steps.drop_schema(connection, owner)
                elif there and drop:
                    await steps.drop_database(connection, owner)
        except SupervisorError as failure:
            if failure.reason in ("DATABASE_SERVER_UNREACHABLE", "LEADERSHIP_LOST"):
                raise
            text = f"Its database could not be {'dropped' if drop else 'shut'}: {failure.message}"
            raise SupervisorError(
                "DATABASE_NOT_REMOVED", text, resource=app.name,
                metadata={"detail": failure.message, "wanted": "dropped" if drop else "shut"},
            ) from failure  # fmt: skip
        self._open.pop(app.uid, None)

    def _claim(self, app: AppRecord) -> Claim:
        return Claim(mark_of(app.name, app.uid), self._leader)

    async def _shut(
        self, server: DatabaseServerRecord, connection: Connection, app: AppRecord, keep: frozenset[str]
    ) -> bool:
        """Shut out all logins but those to `keep`; tell whether the app has anything on the server."""
        owner = owner_of(app.name, app.uid)
        async with connection.transaction():
            if not await steps.claim(connection, owner, self._claim(app), make=False):
                return False
            shut = await steps.shut_out(connection, owner, keep)
        await self._end(server, connection, owner, shut, schema=_in_schema(app))
        return True

    def _server_of(self, app: AppRecord) -> DatabaseServerRecord:
        server = self._servers.get(app.database_server)
        if server is None:
            text = f"{app.database_server} does not exist."
            raise SupervisorError("DATABASE_SERVER_NOT_FOUND", text, resource=app.database_server)
        return server

    async def _end(
        self,
        server: DatabaseServerRecord,
        connection: Connection,
        owner: str,
        shut: Sequence[str],
        *,
        schema: bool,
    ) -> None:
        """End the sessions of logins that were shut out, and drop these from within their database."""
        if not shut:
            return
        await steps.end_sessions(connection, owner, shut)
        if schema:
            await steps.forget_logins(connection, owner, shut)
            return
        async with connected(server, owner) as inside:
            await steps.forget_logins(inside, owner, shut)

    @asynccontextmanager
    async def _at(self, server: DatabaseServerRecord) -> AsyncIterator[Connection]:
        """Give a connection to a server, in turn; fail at once while it rests."""
        turn = self._turns.setdefault(server.name, _Turn(asyncio.Semaphore(AT_ONCE)))
        self._refuse_while_it_rests(turn, server)
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await turn.room.acquire()
        except TimeoutError:
            text = f"{server.name} is busy with other apps' databases."
            raise SupervisorError("DATABASE_SERVER_UNREACHABLE", text, resource=server.name) from None
        began = self._clock()
        try:
            self._refuse_while_it_rests(turn, server)
            if turn.failure is not None:  # one tries, the others wait for what comes of it
                turn.rests_until = began + CONNECT_SECONDS + REST_SECONDS
            async with connected(server) as connection:
                turn.failure = None
                yield connection
        except SupervisorError as failure:
            if failure.reason == "DATABASE_SERVER_UNREACHABLE" and not isinstance(failure, _RestingError):
                now = self._clock()
                turn.failure, turn.rests_until = failure, now + max(REST_SECONDS, now - began)
                turn.revision = server.revision
            raise
        finally:
            turn.room.release()

    def _refuse_while_it_rests(self, turn: _Turn, server: DatabaseServerRecord) -> None:
        if turn.revision != server.revision:
            turn.failure = None
        elif turn.failure is not None and self._clock() < turn.rests_until:
            raise _RestingError(turn.failure)


def _in_schema(app: AppRecord) -> bool:
    return app.spec.database.postgres.mode != Database.Postgres.DATABASE


__all__ = ("AppDatabases", "Provided")

"""What the reconciler asks for: a database for a start, old logins shut out, the data dropped or kept.

Keeps in memory only which logins of an app may be open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Database
from services.control_plane.databases import extensions, spares, steps, templates
from services.control_plane.databases.connecting import Connection, DatabaseClosedError, inside
from services.control_plane.databases.names import login_of, mark_of, owner_of, password_of, url_of
from services.control_plane.databases.provisioning import Provisioning
from services.control_plane.databases.relocation import Relocation
from services.control_plane.databases.schemas import Order
from services.control_plane.databases.spares import SparePool
from services.control_plane.databases.steps import Claim, Login
from services.control_plane.databases.turns import ServerTurns
from services.control_plane.rules.conditions import DATABASE_PROVIDED, get_condition
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, DatabaseServerRecord
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.databases")


@dataclass(frozen=True, slots=True)
class Provided:
    """A database for one start."""

    url: str = field(repr=False)
    pool: int
    """Connections that the instance's pool may have."""


class AppDatabases:
    """Makes, guards and drops apps' databases. Lives on one loop."""

    def __init__(self, mirror: Mirror, clock: Callable[[], float], leader: int) -> None:
        """`clock` gives seconds, monotonic; `leader` rises from leader to leader."""
        self._servers = mirror.database_servers
        self._leader = leader
        self._turns = ServerTurns(clock)
        self._copying = ServerTurns(clock, templates.AT_ONCE)
        """Of those that begin as a copy, which takes long: they hold up no other."""
        self._schemas = Provisioning(self._turns)
        self.spares = SparePool(self._servers)
        """What is made ahead; its user runs it."""
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
        asked = list(app.spec.database.postgres.extensions)
        shared = extensions.SCHEMA if schema and asked else ""
        login = Login(name, password_of(server.key, name), 2 * pool + 1, shared)
        kept = frozenset({name, *(login_of(owner, other) for other in keep)})
        if schema:
            if asked:
                async with self._turns.at(server) as connection:
                    await extensions.provide(connection, asked, shared)
            order = Order(owner, claim, kept, login, must_exist)
            database = await self._schemas.carry_out(server, order)
        else:
            database = owner
            template = "" if must_exist else app.spec.database.postgres.template
            turns = self._copying if template else self._turns
            async with turns.at(server) as connection:
                await steps.refuse_catalog(connection, server.name)
                async with connection.transaction():
                    await steps.claim(connection, owner, claim)
                if template:
                    await templates.begin_as_copy(connection, server, owner, claim, template)
                await self._make_database(
                    server, connection, owner, claim, must_exist=must_exist or bool(template)
                )
                if asked:
                    async with inside(server, owner) as own:
                        await extensions.provide(own, asked, "public")
                async with connection.transaction():
                    await steps.claim(connection, owner, claim)
                    shut = await steps.shut_out(connection, owner, kept)
                    await steps.make_login(connection, owner, login)
                await self._end(server, connection, owner, shut, schema=False)
        self._open[app.uid] = kept
        address = server.server.app_address
        return Provided(url_of(server.admin_url, name, login.password, database, address), pool)

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
        if _in_schema(app):
            await self._schemas.carry_out(server, Order(owner, self._claim(app), kept))
        else:
            async with self._turns.at(server) as connection:
                await self._shut(server, connection, app, kept)
        self._open[app.uid] = kept

    async def end(self, app: AppRecord, *, drop: bool, at: str = "") -> None:
        """Shut out all of an app's logins and, if it is to `drop`, remove its data. Repeats do nothing.

        `at` is the server, that of its database if it is empty. Raises SupervisorError
        DATABASE_SERVER_UNREACHABLE, LEADERSHIP_LOST, DATABASE_NOT_REMOVED.
        """
        server = self._servers.get(at or app.database_server)
        if server is None:
            return  # it is forgotten with all that is on it
        owner = owner_of(app.name, app.uid)
        try:
            async with self._turns.at(server) as connection:
                if app.spec.database.postgres.template:
                    await templates.drop_copies(connection, server, owner, self._claim(app))
                there = await self._shut(server, connection, app, frozenset())
                if there and drop and _in_schema(app):
                    async with connection.transaction():
                        await steps.claim(connection, owner, self._claim(app))
                        await steps.drop_schema(connection, owner)
                elif there and drop:
                    await steps.drop_database(connection, owner, self._claim(app))
        except SupervisorError as failure:
            if failure.reason in ("DATABASE_SERVER_UNREACHABLE", "LEADERSHIP_LOST"):
                raise
            text = f"Its database could not be {'dropped' if drop else 'shut'}: {failure.message}"
            raise SupervisorError(
                "DATABASE_NOT_REMOVED", text, resource=app.name,
                metadata={"detail": failure.message, "wanted": "dropped" if drop else "shut"},
            ) from failure  # fmt: skip
        if at in ("", app.database_server):
            self._open.pop(app.uid, None)

    def relocation(self, app: AppRecord, target: str) -> Relocation:
        """Return the way of an app's database to another server."""
        return Relocation(
            self._server_of(app), self._server(target), owner_of(app.name, app.uid), self._claim(app),
            in_schema=_in_schema(app), was_made=_was_made(app),
            asked=tuple(app.spec.database.postgres.extensions),
        )  # fmt: skip

    async def close(self) -> None:
        """End what is under way, in the middle of it: who leads next goes on."""
        await self._schemas.close()

    def _claim(self, app: AppRecord) -> Claim:
        return Claim(mark_of(app.name, app.uid), self._leader)

    async def _make_database(
        self,
        server: DatabaseServerRecord,
        connection: Connection,
        owner: str,
        claim: Claim,
        *,
        must_exist: bool,
    ) -> None:
        """Make an app's database, or give it a spare one. Raises as `steps.make_database`."""
        if not must_exist and not await steps.has_database(connection, owner):
            async with connection.transaction():
                await steps.claim(connection, owner, claim)
                taken = await spares.take(connection, server, owner)
            if taken or server.server.spare_databases:
                self.spares.look()
        await steps.make_database(connection, owner, must_exist=must_exist)

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
        return self._server(app.database_server)

    def _server(self, name: str) -> DatabaseServerRecord:
        server = self._servers.get(name)
        if server is None:
            raise SupervisorError("DATABASE_SERVER_NOT_FOUND", f"{name} does not exist.", resource=name)
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
        if not [it async for it in steps.end_sessions(connection, {owner: shut})]:
            raise steps.not_ended(owner)
        if schema or not await steps.has_database(connection, owner):
            await steps.forget_logins(connection, {owner: shut})
            return
        try:
            async with inside(server, owner) as own:
                await steps.forget_logins(own, {owner: shut})
        except DatabaseClosedError as refusal:
            # They get in no more, and go with the database.
            log.warning("logins stay: %s: %s", owner, refusal.message,
                        extra={"action": "databases.logins_stay", "server": server.name})  # fmt: skip


def _was_made(app: AppRecord) -> bool:
    provided = get_condition(app.status.conditions, DATABASE_PROVIDED)
    return provided is not None and provided.status == Condition.MET


def _in_schema(app: AppRecord) -> bool:
    return app.spec.database.postgres.mode != Database.Postgres.DATABASE


__all__ = ("AppDatabases", "Provided")

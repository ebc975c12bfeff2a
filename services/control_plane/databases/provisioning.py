"""Carries out what apps wait for on a server, all that wait together, one batch after another.

An app has what it waits for as soon as its own part is done: a session that does not end holds up no other.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import islice

from services.control_plane.databases import schemas, steps
from services.control_plane.databases.connecting import STEP_SECONDS, Connection
from services.control_plane.databases.schemas import Order, Shut
from services.control_plane.databases.turns import TURN_SECONDS, ServerTurns, busy
from services.control_plane.store.records import DatabaseServerRecord
from services.rpc.errors import SupervisorError

MOST = 100
"""Apps in one transaction."""


@dataclass(slots=True)
class _Waiting:
    server: DatabaseServerRecord
    order: Order
    database: asyncio.Future[str]


@dataclass(slots=True)
class _Line:
    """What is to be done on one server."""

    waiting: list[_Waiting] = field(default_factory=list)
    shut: dict[str, Shut] = field(default_factory=dict)
    """Logins to be forgotten once nobody waits, by owner."""

    def take(self, server: DatabaseServerRecord) -> list[_Waiting]:
        """Return those who wait for the server as it is known now; of each app one."""
        taken: dict[str, _Waiting] = {}
        for it in self.waiting:
            if it.server == server and len(taken) < MOST:
                taken.setdefault(it.order.owner, it)
        self.waiting = [it for it in self.waiting if taken.get(it.order.owner) is not it]
        return [it for it in taken.values() if not it.database.done()]


class Provisioning:
    """Of schemas on all servers. Lives on one loop."""

    def __init__(self, turns: ServerTurns) -> None:
        self._turns = turns
        self._lines: dict[str, _Line] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}

    async def carry_out(self, server: DatabaseServerRecord, order: Order) -> str:
        """Return the database that an app's schema is in, once it is there and guarded.

        Raises SupervisorError as `AppDatabases.prepare`. Safe to cancel; a repeat goes on.
        """
        database: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(server.name, _Line()).waiting.append(_Waiting(server, order, database))
        if server.name not in self._workers:
            work = self._work(server.name, self._lines[server.name])
            self._workers[server.name] = asyncio.create_task(work, name=f"schemas on {server.name}")
        try:
            async with asyncio.timeout(TURN_SECONDS + STEP_SECONDS):
                return await database
        except TimeoutError:
            raise busy(server) from None

    async def close(self) -> None:
        """Leave everything as it is."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        lines, self._lines, self._workers = list(self._lines.values()), {}, {}
        for it in (one for line in lines for one in line.waiting):  # whose worker had not begun
            if not it.database.done():
                it.database.set_exception(busy(it.server))

    async def _work(self, name: str, line: _Line) -> None:
        try:
            while line.waiting:
                await self._one_batch(line, line.waiting[0].server)
        finally:
            del self._workers[name]
            if not line.waiting:
                del self._lines[name]

    async def _one_batch(self, line: _Line, server: DatabaseServerRecord) -> None:
        taken: list[_Waiting] = []
        refusal = busy(server)
        try:
            async with self._turns.at(server) as connection:
                taken = line.take(server)  # only now, for more have come meanwhile
                await steps.refuse_catalog(connection, server.name)
                await self._carry_out(connection, server, taken, line)
                await self._forget(connection, line)
        except SupervisorError as failure:
            refusal = failure
            taken = taken or line.take(server)
        finally:
            for it in taken:
                if not it.database.done():
                    it.database.set_exception(refusal)

    async def _carry_out(
        self, connection: Connection, server: DatabaseServerRecord, taken: list[_Waiting], line: _Line
    ) -> None:
        told = await schemas.guard(connection, server, [it.order for it in taken]) if taken else {}
        shut = {owner: logins for owner, logins in told.items() if not isinstance(logins, SupervisorError)}
        line.shut |= {owner: logins for owner, logins in shut.items() if logins}
        by_owner = {it.order.owner: it.database for it in taken}
        for owner, database in by_owner.items():
            refusal = told[owner]
            if isinstance(refusal, SupervisorError) and not database.done():
                database.set_exception(refusal)
        async for owner in steps.end_sessions(connection, shut):
            if not by_owner[owner].done():
                by_owner[owner].set_result(connection.info.dbname)
        for owner, database in by_owner.items():
            if not database.done():
                database.set_exception(steps.not_ended(owner))

    async def _forget(self, connection: Connection, line: _Line) -> None:
        """Drop logins that were shut out, while nobody waits; what stays is found by the app's next epoch."""
        while line.shut and not line.waiting:
            some = dict(islice(line.shut.items(), MOST))
            for owner in some:
                del line.shut[owner]
            await steps.forget_logins(connection, some)

"""Who works on a database server when: a few connections at a time, and none while it rests.

A server that does not answer is left alone for a moment: its apps must not hold up those of others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.control_plane.databases.connecting import CONNECT_SECONDS, Connection, connected
from services.control_plane.store.records import DatabaseServerRecord
from services.rpc.errors import SupervisorError

AT_ONCE = 4
"""Connections that work on one server at a time: more are no faster."""

TURN_SECONDS = 10.0
"""How long an app waits for its turn there."""

REST_SECONDS = 1.0
"""How long a server is left alone that did not answer."""


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


class ServerTurns:
    """Of all servers. Lives on one loop."""

    def __init__(self, clock: Callable[[], float], at_once: int = AT_ONCE) -> None:
        """`clock` gives seconds, monotonic; `at_once` connections work on one server at a time."""
        self._clock = clock
        self._at_once = at_once
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def at(self, server: DatabaseServerRecord) -> AsyncIterator[Connection]:
        """Give a connection to a server, in turn; fail at once while it rests."""
        turn = self._turns.setdefault(server.name, _Turn(asyncio.Semaphore(self._at_once)))
        self._refuse_while_it_rests(turn, server)
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await turn.room.acquire()
        except TimeoutError:
            raise busy(server) from None
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


def busy(server: DatabaseServerRecord) -> SupervisorError:
    """Return the error for an app whose turn does not come."""
    text = f"{server.name} is busy with other apps' databases."
    return SupervisorError("DATABASE_SERVER_UNREACHABLE", text, resource=server.name)

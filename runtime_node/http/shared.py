"""What all connections of one front share: its routes, bounds, counts, and the clock of the sweep."""

from __future__ import annotations

import asyncio
import itertools
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

from runtime_node.http.connection_shares import ConnectionShares, Holder
from runtime_node.http.forwarded import TrustedProxies
from runtime_node.http.limits import FrontLimits
from runtime_node.http.problems import NODE_DRAINING, QUEUE_FULL, Problem
from runtime_node.http.router import Router

if TYPE_CHECKING:
    from runtime_node.http.exchange import Exchange
    from runtime_node.http.gate import Gate

_READ_BYTES = 16 * 1024


class OpenConnection(Holder, Protocol):
    """A connection or WebSocket, as the listener sees it."""

    deadline: float
    transport: asyncio.Transport

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed."""
        ...

    def shutdown(self) -> None:
        """Close when nothing is being served; else after what is."""
        ...

    def cut(self, problem: Problem) -> None:
        """End what is being served, with the problem if it can still be told, and close."""
        ...


class Orphan(Protocol):
    """A request whose client is gone while its app works on."""

    deadline: float

    def cut(self, problem: Problem, *, timeout: bool = False) -> None:
        """End it; `timeout` because its time is up."""
        ...


class FrontShared:
    """One for all connections of a listener. Belongs to the front loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        router: Router,
        limits: FrontLimits,
        trusted: TrustedProxies,
    ) -> None:
        self.loop = loop
        self.router = router
        self.limits = limits
        self.trusted = trusted
        self.connections: set[OpenConnection] = set()
        self.shares = ConnectionShares(limits, self.connections)
        self.places = itertools.count()
        """Numbers those that wait, in order."""
        self.orphans: set[Orphan] = set()
        self.read_buffer = memoryview(bytearray(_READ_BYTES))
        """Where WebSockets read to; emptied before anybody else reads."""
        self.head_bytes = 0
        """Held of heads that are not complete."""
        self.draining = False
        """The node leaves: each connection ends with its response, an app that is gone is not unknown."""
        self.ended = False
        """Nobody is answered any more."""
        self.refused_connections = 0
        self.refusals: dict[str, int] = {}
        self.now = 0.0
        """`time.monotonic()` at the latest tick."""
        self.date_line = b""
        self._next_date = 0.0
        self.tick()

    def tick(self) -> None:
        """Look at the clock."""
        self.now = time.monotonic()
        if self.now >= self._next_date:
            self._next_date = self.now + 1.0
            self.date_line = b"date: " + formatdate(time.time(), usegmt=True).encode("ascii") + b"\r\n"

    def gate_for(self, exchange: Exchange) -> Gate | None:
        """Return the gate that answers the request; None when it was answered here."""
        scope = exchange.scope
        found = self.router.lookup(
            exchange.authority, exchange.x_app, scope["raw_path"], scope["query_string"]
        )
        if isinstance(found, Problem):
            # An app that is gone from a node that leaves is elsewhere soon, not unknown.
            leaves = self.draining and found.status == 404
            exchange.refuse(NODE_DRAINING if leaves else found)
            return None
        gate, scope["root_path"] = found
        shares = self.shares
        most = shares.most_per_app
        if len(self.connections) + shares.streams > most and gate.held_connections >= most:
            exchange.refuse(QUEUE_FULL)
            return None
        return gate

    def count(self, problem: Problem) -> None:
        """Count an answer of the node's own, by reason."""
        self.refusals[problem.reason] = self.refusals.get(problem.reason, 0) + 1

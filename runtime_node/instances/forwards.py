"""Which apps have moved away from this node, and where to: each is forwarded for a while, and no longer.

A table with bounds in number and time; the routes point at its gates. Belongs to the control loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.forwarding import Carrier, Forwarder, ForwardGate, Target
from runtime_node.http.gate import Gate
from runtime_node.http.limits import DEFAULT_GATE_LIMITS, GateLimits
from runtime_node.instances.record import Instance

log = logging.getLogger("runtime_node.forwards")

MAX_APPS = 10_000
FORWARDS_TOLD = 1_000
"""Apps that have moved away, told one by one."""
IDLE_SECONDS = 60.0
"""A forward ends when nobody has asked for so long."""
LONGEST_SECONDS = 600.0
"""A forward ends then, whoever asks: clients have to learn."""


@dataclass(frozen=True, slots=True)
class Move:
    """What a node is told of an app that has left it."""

    app: str
    """Its id."""
    uid: str
    epoch: int
    """Under which it is told: a later one is newer."""
    target: Target
    domains: tuple[str, ...] = ()


@dataclass(slots=True)
class Forward:
    """One app that has moved."""

    app: str
    uid: str
    epoch: int
    domains: tuple[str, ...]
    gate: ForwardGate
    forwarder: Forwarder
    began: float

    def is_older_than(self, instance: Instance) -> bool:
        """Tell whether an instance came after the app had left, and is not the one that leaves."""
        return instance.uid != self.uid or instance.epoch > self.epoch


@dataclass(frozen=True, slots=True)
class ForwardFigures:
    """What was forwarded in this life of the node."""

    apps: int
    requests: int
    failures: int


class Forwards:
    """The apps that are forwarded, the one begun longest ago first."""

    def __init__(
        self,
        carrier: Carrier,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_apps: int = MAX_APPS,
    ) -> None:
        self._carrier = carrier
        self._clock = clock
        self._max_apps = max_apps
        self._forwards: dict[str, Forward] = {}
        self._ended_requests = self._ended_failures = 0
        self._draining: set[asyncio.Task[int]] = set()

    def get(self, app: str) -> Forward | None:
        """Return an app's forward, if it has one."""
        return self._forwards.get(app)

    def begin(self, move: Move, limits: GateLimits | None) -> tuple[Forward, Forward | None]:
        """Forward an app's requests from now on; return that, and one that had to give way for it.

        An epoch older than that of a known forward changes nothing. What is known keeps its gate.
        """
        known = self._forwards.get(move.app)
        if known is not None and known.uid == move.uid:
            if move.epoch >= known.epoch:
                known.epoch, known.domains = move.epoch, move.domains
                if known.forwarder.target != move.target:
                    known.forwarder.target = move.target
                    known.began = self._clock()
                    self._log("forward.redirected", known)
            return known, None
        oldest = known
        if oldest is None and len(self._forwards) >= self._max_apps:
            oldest = next(iter(self._forwards.values()))
        if oldest is not None:
            self.end(oldest, "others needed its place")
        # Nobody's, and so the node's own: the name is that of the instance in whose name code runs.
        gate = ForwardGate("", limits or DEFAULT_GATE_LIMITS)
        forwarder = Forwarder(self._carrier, move.app, move.target)
        gate.open(forwarder)
        begun = Forward(move.app, move.uid, move.epoch, move.domains, gate, forwarder, self._clock())
        self._forwards[move.app] = begun
        self._log("forward.begun", begun)
        return begun, oldest

    def end(self, forward: Forward, why: str, successor: Gate | None = None) -> None:
        """Forward an app no more: what waits goes to `successor`; what is under way ends, or is told to."""
        if self._forwards.get(forward.app) is not forward:
            return
        del self._forwards[forward.app]
        self._ended_requests += forward.forwarder.forwarded
        self._ended_failures += forward.forwarder.failed
        self._log("forward.ended", forward, why=why)
        if successor is not None:
            forward.gate.forward(successor)
        else:
            forward.gate.close("APP_MOVED", 1.0)
        ending = asyncio.create_task(forward.gate.drain(forward.gate.limits.request_timeout))
        self._draining.add(ending)
        ending.add_done_callback(self._draining.discard)

    def over(self) -> list[tuple[Forward, str]]:
        """Return the forwards whose time is over, and why."""
        now = self._clock()
        found = []
        for forward in self._forwards.values():
            figures = forward.gate.figures()
            used = max(forward.began, figures.last_request_time or 0.0)
            busy = figures.in_flight or figures.queued or figures.websockets
            if now - forward.began > LONGEST_SECONDS:
                found.append((forward, "its time is over"))
            elif not busy and now - used > IDLE_SECONDS:
                found.append((forward, "nobody asks any more"))
        return found

    def newest(self, most: int) -> list[Forward]:
        """Return the forwards begun last, at most so many."""
        return list(islice(reversed(self._forwards.values()), most))

    def message(self) -> pb.Forwarding:
        """Return what is forwarded, the newest FORWARDS_TOLD apps one by one."""
        figures = self.figures()
        return pb.Forwarding(
            app_count=figures.apps,
            request_count=figures.requests,
            failure_count=figures.failures,
            moved_apps=[_moved(it) for it in self.newest(FORWARDS_TOLD)],
        )

    def figures(self) -> ForwardFigures:
        """Return what was forwarded. Any thread."""
        requests, failures = self._ended_requests, self._ended_failures
        forwards = tuple(self._forwards.values())
        for forward in forwards:
            requests += forward.forwarder.forwarded
            failures += forward.forwarder.failed
        return ForwardFigures(len(forwards), requests, failures)

    def _log(self, action: str, forward: Forward, **facts: object) -> None:
        forwarder = forward.forwarder
        log.info(
            "%s: apps/%s to %s", action.partition(".")[2], forward.app, forwarder.target,
            extra={"action": action, "app": f"apps/{forward.app}", "node": forwarder.target.node,
                   "address": str(forwarder.target), "epoch": forward.epoch,
                   "facts": {"requests": forwarder.forwarded, "failures": forwarder.failed, **facts}},
        )  # fmt: skip


def _moved(forward: Forward) -> pb.Forwarding.MovedApp:
    target = forward.forwarder.target
    home = pb.StopInstanceRequest.NewHome(
        node=target.node,
        http_address=str(target),
        domains=forward.domains,
        serves_http2=target.serves_http2,
    )
    return pb.Forwarding.MovedApp(
        app=f"apps/{forward.app}", app_uid=forward.uid, epoch=forward.epoch, new_home=home
    )

"""One call as the servicers and the core see it: who asks, under which id, until when. Free of gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from services.rpc.pipeline.request_id import request_id

ACTOR_KEY = "x-actor"
MAX_WORD = 128

LONGEST_CALL = 30.0
"""Seconds a unary call may take when its caller set no deadline."""


class Transport(Protocol):
    """What the transport tells of a call; grpc.aio's servicer context is one."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Return pairs of key and value."""
        ...

    def peer(self) -> str:
        """Return the address of who calls, as gRPC writes it: `ipv4:127.0.0.1:5`."""
        ...

    def time_remaining(self) -> float | None:
        """Return the seconds to the call's deadline; None without one."""
        ...


class Timed(Protocol):
    """What has so many seconds left; reads need not know of a caller more than that."""

    @property
    def timeout(self) -> float:
        """Seconds until the call's deadline, at most the server's own limit."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call and how long it may take."""

    actor: str
    timeout: float
    """Seconds until the call's deadline, at most the server's own limit."""


class Call:
    """One call under way. What costs something to know is looked at once asked for: most reads never ask."""

    # Defaults of the class, not set one by one: a call is made thousands of times a second.
    size = 0
    """Bytes of its request."""
    deadline: float | None = None
    """On the monotonic clock; None if the caller set none."""

    def __init__(self, method: str, transport: Transport, *, streams: bool) -> None:
        self.method = method
        """The full name, `/appsupervisor.catalog.v1.AppCatalog/GetApp`."""
        self.transport = transport
        self.streams = streams
        """Whether it is answered by a stream."""
        self.began = time.monotonic()

    @cached_property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the caller sent beside the request; of a repeated key the last."""
        return dict(self.transport.invocation_metadata() or ())

    @cached_property
    def request_id(self) -> str:
        """The call's id, in the log and in the trailers of a refusal."""
        return request_id(self.metadata)

    @cached_property
    def peer(self) -> str:
        """The address of who calls, as gRPC writes it: `ipv4:127.0.0.1:5`."""
        return self.transport.peer() or "unknown"

    @cached_property
    def actor(self) -> str:
        """Who is told to have done what the call does; who is identified gets a name here."""
        return _own_word(self.metadata, self.peer)

    @property
    def timeout(self) -> float:
        """Seconds until its deadline, at most LONGEST_CALL."""
        return self._left(LONGEST_CALL)

    def caller(self, longest: float = LONGEST_CALL) -> Caller:
        """Return who asks; its timeout is what is left of the call, at most `longest` seconds."""
        return Caller(self.actor, self._left(longest))

    def _left(self, longest: float) -> float:
        left = longest if self.deadline is None else self.deadline - time.monotonic()
        return max(0.0, min(left, longest))


def _own_word(metadata: Mapping[str, str | bytes], peer: str) -> str:
    """Return the caller's own word in `x-actor` and its address."""
    told = metadata.get(ACTOR_KEY)
    word = "".join(letter for letter in str(told)[:MAX_WORD] if letter.isprintable()) if told else ""
    return f"{word} ({peer})" if word else peer

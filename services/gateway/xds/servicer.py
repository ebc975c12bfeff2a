"""AggregatedDiscoveryService: one stream carries all kinds. An Envoy's is incremental, and a DeltaSession;
a gRPC client's tells the state of the world, and is a StateSession."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from services.gateway.xds.cache import ResourceCache
from services.gateway.xds.messages import message
from services.gateway.xds.on_demand import OnDemandCache
from services.gateway.xds.session import DeltaSession, Refusal
from services.gateway.xds.state_session import StateSession
from services.rpc.health import ResourceHealth

log = logging.getLogger("appsupervisor.gateway")

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ENVOYS = "envoys/"
CLIENTS = "grpc-clients/"
"""What health's names of them begin with."""

Session = DeltaSession | StateSession


class DiscoveryServicer:
    """Tells every connected Envoy and gRPC client what the caches hold. Belongs to the caches' loop."""

    def __init__(self, cache: ResourceCache, on_demand: OnDemandCache) -> None:
        """`cache` is what Envoys are told, `on_demand` what gRPC clients ask for by name."""
        self._cache = cache
        self._on_demand = on_demand
        self._sessions: dict[Session, asyncio.Event] = {}
        self.health = ResourceHealth(self._is_well)
        """Of `envoys/{node id}` and `grpc-clients/{node id}`: whether it is connected, and has accepted
        what it was told last."""
        self.refusals: Counter[str] = Counter()
        """Messages that an Envoy or a client did not accept, by kind."""
        self.sent: Counter[str] = Counter()
        """Messages sent, by kind."""
        self.sent_bytes = 0
        self.closed = False

    @property
    def sessions(self) -> list[DeltaSession]:
        """Those of the Envoys connected now."""
        return [session for session in list(self._sessions) if isinstance(session, DeltaSession)]

    @property
    def clients(self) -> list[StateSession]:
        """Those of the gRPC clients connected now."""
        return [session for session in list(self._sessions) if isinstance(session, StateSession)]

    def close(self) -> None:
        """End every stream: a drain would wait for them. Envoys and clients keep what they have."""
        self.closed = True
        for wake in self._sessions.values():
            wake.set()

    async def delta(self, requests: AsyncIterator[Any], _call: Any) -> AsyncIterator[Any]:
        """Serve DeltaAggregatedResources until either side ends it."""
        session, wake = DeltaSession(self._cache, partial(self._refused, ENVOYS)), asyncio.Event()

        def changed(kind: str, name: str) -> None:
            if kind:
                session.changed(kind, name)
            wake.set()

        self._cache.follow(changed)
        served = self._serve(session, wake, requests, lambda: self._cache.leave(changed))
        async with contextlib.aclosing(served):
            async for response in served:
                yield response

    async def state(self, requests: AsyncIterator[Any], _call: Any) -> AsyncIterator[Any]:
        """Serve StreamAggregatedResources until either side ends it.

        Raises INVALID_FIELD for a client that asks for what is not served.
        """
        wake = asyncio.Event()
        session = StateSession(self._on_demand, partial(self._refused, CLIENTS), wake.set)
        served = self._serve(session, wake, requests, session.close)
        async with contextlib.aclosing(served):
            async for response in served:
                yield response

    async def _serve(
        self, session: Session, wake: asyncio.Event, requests: AsyncIterator[Any], leave: Callable[[], None]
    ) -> AsyncGenerator[Any]:
        self._sessions[session] = wake
        reading = asyncio.create_task(self._read(requests, session, wake), name="xds requests")
        try:
            while not (self.closed or reading.done()):
                wake.clear()
                while (response := session.next_response()) is not None:
                    self.sent[response.type_url] += 1
                    self.sent_bytes += response.ByteSize()
                    yield response
                await wake.wait()
            if reading.done():
                reading.result()
        finally:
            leave()
            del self._sessions[session]
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reading
            if session.node:
                self.health.changed(_name(session))
                _tell("is gone", "xds.disconnected", session)

    async def _read(self, requests: AsyncIterator[Any], session: Session, wake: asyncio.Event) -> None:
        try:
            async for request in requests:
                named = bool(session.node)
                session.receive(request)
                if not named and session.node:
                    _tell("is connected", "xds.connected", session)
                if request.response_nonce or not named:
                    self.health.changed(_name(session))
                wake.set()
        finally:
            wake.set()

    def _refused(self, of: str, refusal: Refusal) -> None:
        kind = refusal.kind.rpartition(".")[2]
        self.refusals[kind] += 1
        who, field = _WORDS[of]
        log.error(
            "%s did not accept what it was told: %s", who, refusal.reason,
            extra={
                "action": "xds.refused", field: refusal.node, "kind": kind, "resources": refusal.names[:5],
            },
        )  # fmt: skip

    def _is_well(self, name: str) -> bool | None:
        known = [session for session in self._sessions if _name(session) == name]
        return all(session.refusal is None for session in known) if known else None


_WORDS = {ENVOYS: ("an Envoy", "envoy"), CLIENTS: ("a gRPC client", "client")}


def _kind(session: Session) -> str:
    return ENVOYS if isinstance(session, DeltaSession) else CLIENTS


def _name(session: Session) -> str:
    """Return the name by which health knows it; there are many of a name where clients share a bootstrap."""
    return _kind(session) + session.node


def _tell(what: str, action: str, session: Session) -> None:
    # Clients are programs of any length of life; Envoys are few.
    who, field = _WORDS[_kind(session)]
    level = logging.INFO if isinstance(session, DeltaSession) else logging.DEBUG
    log.log(level, "%s %s", who, what, extra={"action": action, field: session.node})


def register(servicer: DiscoveryServicer, methods: Any) -> None:
    """Register the service as generated code would."""
    handlers = {
        name: grpc.stream_stream_rpc_method_handler(
            method,
            request_deserializer=message(f"envoy.service.discovery.v3.{told}Request").FromString,
            response_serializer=message(f"envoy.service.discovery.v3.{told}Response").SerializeToString,
        )
        for name, method, told in (
            ("DeltaAggregatedResources", servicer.delta, "DeltaDiscovery"),
            ("StreamAggregatedResources", servicer.state, "Discovery"),
        )
    }
    methods.add_registered_method_handlers(SERVICE, handlers)

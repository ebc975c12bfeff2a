"""Envoy's AggregatedDiscoveryService, incremental: one stream carries all kinds, and is a DeltaSession."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from services.gateway.xds.cache import ResourceCache
from services.gateway.xds.messages import message
from services.gateway.xds.session import DeltaSession, Refusal
from services.rpc.health import ResourceHealth

log = logging.getLogger("appsupervisor.gateway")

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
HEALTH_PREFIX = "envoys/"


class DiscoveryServicer:
    """Tells every connected Envoy what the cache holds. Belongs to the cache's loop."""

    def __init__(self, cache: ResourceCache) -> None:
        self._cache = cache
        self._sessions: dict[DeltaSession, asyncio.Event] = {}
        self.health = ResourceHealth(self._is_well)
        """Of `envoys/{node id}`: whether it is connected and has accepted what it was told last."""
        self.refusals: Counter[str] = Counter()
        """Messages that an Envoy did not accept, by kind."""
        self.sent: Counter[str] = Counter()
        """Messages sent, by kind."""
        self.sent_bytes = 0
        self.closed = False

    @property
    def sessions(self) -> list[DeltaSession]:
        """Those connected now."""
        return list(self._sessions)

    def close(self) -> None:
        """End every stream: a drain would wait for them. The Envoys keep what they have."""
        self.closed = True
        for wake in self._sessions.values():
            wake.set()

    async def delta(self, requests: AsyncIterator[Any], _call: Any) -> AsyncIterator[Any]:
        """Serve DeltaAggregatedResources until either side ends it."""
        session, wake = DeltaSession(self._cache, self._refused), asyncio.Event()

        def changed(kind: str, name: str) -> None:
            if kind:
                session.changed(kind, name)
            wake.set()

        self._sessions[session] = wake
        self._cache.follow(changed)
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
            self._cache.leave(changed)
            del self._sessions[session]
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reading
            if session.node:
                self.health.changed(HEALTH_PREFIX + session.node)
                log.info("an Envoy is gone", extra={"action": "xds.disconnected", "envoy": session.node})

    async def _read(self, requests: AsyncIterator[Any], session: DeltaSession, wake: asyncio.Event) -> None:
        try:
            async for request in requests:
                named = bool(session.node)
                session.receive(request)
                if not named and session.node:
                    log.info(
                        "an Envoy is connected", extra={"action": "xds.connected", "envoy": session.node}
                    )
                if request.response_nonce or not named:
                    self.health.changed(HEALTH_PREFIX + session.node)
                wake.set()
        finally:
            wake.set()

    def _refused(self, refusal: Refusal) -> None:
        kind = refusal.kind.rpartition(".")[2]
        self.refusals[kind] += 1
        log.error(
            "an Envoy did not accept what it was told: %s", refusal.reason,
            extra={
                "action": "xds.refused", "envoy": refusal.node, "kind": kind, "resources": refusal.names[:5],
            },
        )  # fmt: skip

    def _is_well(self, name: str) -> bool | None:
        node = name.removeprefix(HEALTH_PREFIX)
        known = [session for session in self._sessions if session.node == node]
        return all(session.refusal is None for session in known) if known else None


def register(servicer: DiscoveryServicer, methods: Any) -> None:
    """Register the service as generated code would."""
    request = message("envoy.service.discovery.v3.DeltaDiscoveryRequest")
    response = message("envoy.service.discovery.v3.DeltaDiscoveryResponse")
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.delta,
        request_deserializer=request.FromString,
        response_serializer=response.SerializeToString,
    )
    methods.add_registered_method_handlers(SERVICE, {"DeltaAggregatedResources": handler})

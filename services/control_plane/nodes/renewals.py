"""Answers a node's heartbeats with renewals of its lease, one call at a time.

What may be granted, and when, is decided by `services.control_plane.leases`.
"""

from __future__ import annotations

import asyncio
import logging

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import RenewLeaseRequest, WatchInstancesResponse
from services.control_plane.leases import Grant, Leases
from services.control_plane.nodes.client import NodeClient
from services.rpc.errors import SupervisorError
from services.spec.scalars import SECOND, seconds, set_nanoseconds

log = logging.getLogger("appsupervisor.reconciler")


class LeaseRenewals:
    """Of one life of one node."""

    def __init__(self, node: Node, client: NodeClient, leases: Leases) -> None:
        self._node = node
        self._client = client
        self._leases = leases
        self._call: asyncio.Task[None] | None = None
        self._told = ""

    def answer(self, heartbeat: WatchInstancesResponse) -> None:
        """Renew the lease for a heartbeat that has just been read, if that is due and none is under way."""
        if self._call is not None and not self._call.done():
            return
        time = seconds(heartbeat.monotonic_time)
        grant = self._leases.grant(self._node.name, self._node.incarnation, time)
        if grant is not None:
            self._call = asyncio.create_task(self._renew(grant), name=f"lease {self._node.name}")

    def close(self) -> None:
        """Renew no more; a call that is under way does no harm."""
        if self._call is not None:
            self._call.cancel()

    async def _renew(self, grant: Grant) -> None:
        # What a node gives up, and what it may do without a lease, has to be known from its answer; so no
        # grant of the latter can come after one that takes it back.
        answered = bool(grant.fences or grant.alone or grant.parting)
        try:
            lease = await self._client.renew(request_of(grant), answered=answered)
        except SupervisorError as refusal:
            if refusal.reason != self._told:
                self._told = refusal.reason
                log.warning("lease not renewed: %s: %s", self._node.name, refusal.message,
                            extra={"action": "lease.not_renewed", "node": self._node.name})  # fmt: skip
            return
        self._told = ""
        if lease is not None:
            self._leases.accepted(self._node.name, grant, alone=lease.alone)


def request_of(grant: Grant) -> RenewLeaseRequest:
    """Return the call that makes a grant."""
    request = RenewLeaseRequest(term=grant.term, incarnation=grant.incarnation, alone=grant.alone)
    # Rounded down: a lease never lasts longer for it.
    set_nanoseconds(request.monotonic_time, int(grant.monotonic_time * SECOND))
    set_nanoseconds(request.lease_duration, int(grant.lasts * SECOND))
    for fence in grant.fences:
        request.fences.add(app_uid=fence.app_uid, epoch=fence.epoch)
    return request

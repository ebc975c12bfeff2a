"""Renews the node's lease, and ends what is under way when it runs out. Belongs to the control loop.

That nothing leaves without a lease does not rest on this: each response looks at the lease itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from appsupervisor.runtime.v1.runtime_environment_pb2 import RenewLeaseRequest
from runtime_node import rules
from runtime_node.instances.host import InstanceHost
from runtime_node.lease import Lease
from services.spec.scalars import seconds

log = logging.getLogger("runtime_node.lease")


class LeaseKeeper:
    """Keeps one lease for the instances of a host."""

    def __init__(self, lease: Lease, host: InstanceHost) -> None:
        self.lease = lease
        self._host = host
        self._renewed = asyncio.Event()

    def renew(self, request: RenewLeaseRequest) -> None:
        """Carry out RenewLease; see there for the errors."""
        lease = self.lease
        rules.check_renewal(request, lease.now)
        before, stretch, alone = lease.term, lease.stretch, lease.alone
        lease.renew(
            request.term,
            request.incarnation,
            seconds(request.monotonic_time),
            seconds(request.lease_duration),
            lambda: self._host.give_up({fence.app_uid: fence.epoch for fence in request.fences}),
            alone=request.alone,
        )
        self._renewed.set()
        if lease.alone != alone:
            self._tell_alone()
        if (lease.term, lease.stretch) != (before, stretch):
            log.info("lease held under term %d", lease.term,
                     extra={"action": "lease.held", "term": lease.term})  # fmt: skip

    def _tell_alone(self) -> None:
        if self.lease.alone:
            told = "no other node is in the environment: apps that are CONSISTENT by default need no lease"
        else:
            told = "another node is in the environment: apps that are CONSISTENT by default need the lease"
            self._host.lapse()  # what was begun without one
        log.info(told, extra={"action": "lease.alone", "alone": self.lease.alone})

    async def run(self) -> None:
        """At the end of each stretch of the lease cut off what is under way; for ever."""
        lease = self.lease
        held, stretch = False, lease.stretch
        while True:
            self._renewed.clear()
            remaining = min(lease.remaining, rules.MINUTE)
            if held and not (remaining and lease.stretch == stretch):
                log.warning(
                    "the lease has run out: apps that are CONSISTENT answer 503 until it is held again%s",
                    ", but for those that are so by default" if lease.alone else "",
                    extra={"action": "lease.run_out", "term": lease.term},
                )
                self._host.lapse()
            held, stretch = remaining > 0, lease.stretch
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining or None):
                    await self._renewed.wait()

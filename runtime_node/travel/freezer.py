"""Stops an app that is about to leave its node, and holds its requests until it is somewhere again.

Nothing here starts an instance: whoever does that ends the freeze.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from runtime_node.instances.databases import Databases
from runtime_node.instances.holds import Hold
from runtime_node.instances.lifecycle import Lifecycle
from runtime_node.instances.record import Instance
from runtime_node.instances.routes import Routes
from runtime_node.instances.table import InstanceTable
from runtime_node.travel.offers import Offers
from services.rpc.errors import SupervisorError
from services.spec.effective import effective_limits

log = logging.getLogger("runtime_node.travel")

HOLD_SECONDS = 15.0
"""The longest that requests are held: whoever froze the app may be gone."""
GRACE_SECONDS = 5.0
"""Beyond its own limit for a stop; then the app stays here."""
_HAND_OVER_SECONDS = 1.0
_TURN = 0.005


class Freezer:
    """Freezes and releases apps whose data is offered. Belongs to the control loop."""

    def __init__(
        self,
        offers: Offers,
        table: InstanceTable,
        lifecycle: Lifecycle,
        routes: Routes,
        databases: Databases,
    ) -> None:
        self._offers = offers
        self._table = table
        self._lifecycle = lifecycle
        self._routes = routes
        self._databases = databases
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._holds: dict[str, Hold] = {}
        """By app uid, until somebody has asked how long it lasted."""

    def may_be_missing(self, app: str, uid: str) -> bool:
        """Tell whether an app may have no data yet: an instance is here that may make it."""
        here = [it for it in self._table.of_app(app) if it.uid == uid]
        return bool(here) and not any(it.spec().requires_existing_data for it in here)

    async def freeze(self, app: str, uid: str, ticket: bytes) -> tuple[str, float]:
        """Stop the app here; return the freeze's id, and how many seconds that took.

        Raises TICKET_INVALID when its data is not offered, DATA_NOT_MOVED when it does not end in time.
        """
        offer = self._offers.of(uid)
        if offer is None:
            raise SupervisorError(
                "TICKET_INVALID", f"The data of apps/{app} is not offered here.", resource=f"apps/{app}"
            )
        began = time.monotonic()
        leaving = [it for it in self._table.of_app(app) if it.uid == uid]
        if leaving:
            self._hold(app, uid, leaving)
            await self._stop_all(app, leaving)
        if self._offers.of(uid) is not offer or any(it.uid == uid for it in self._table.of_app(app)):
            raise SupervisorError(
                "DATA_NOT_MOVED",
                f"apps/{app} was started again, or its offer has ended.",
                resource=f"apps/{app}",
            )
        offer.freeze_id = secrets.token_hex(8)
        self._offers.admit(offer, ticket)
        took = time.monotonic() - began
        log.info("app frozen", extra={"action": "travel.frozen", "app": app, "facts": {"took": took}})
        return offer.freeze_id, took

    async def release(self, app: str, uid: str, *, moved: bool) -> tuple[float | None, int]:
        """End an offer and a hold; return the seconds that it lasted, None without one, and how many waited.

        Raises INSTANCE_EXISTS and DATABASE_UNAVAILABLE.
        """
        if moved and any(it.uid == uid for it in self._table.of_app(app)):
            raise SupervisorError(
                "INSTANCE_EXISTS", f"An instance of apps/{app} is here.", resource=f"apps/{app}"
            )
        # Before the mark: the disk may take its time.
        self._let_go(app)
        hold = self._holds.pop(uid, None)
        await self._offers.close(uid)
        if moved:
            try:
                await asyncio.to_thread(self._databases.leave, app, uid)
            except OSError as fault:
                raise SupervisorError(
                    "DATABASE_UNAVAILABLE",
                    f"The directory that the data has left cannot be marked: {fault.strerror or fault}.",
                    resource=f"apps/{app}",
                    metadata={"why": str(fault.strerror or fault)},
                ) from fault
        return (hold.seconds, hold.waited) if hold is not None else (None, 0)

    def _hold(self, app: str, uid: str, leaving: Sequence[Instance]) -> None:
        self._let_go(app)
        newest = leaving[-1]
        hold = Hold(f"apps/{app}", newest.gate.limits, newest.spec().domains, leaving)
        self._holds = {known: it for known, it in self._holds.items() if not it.is_old}
        self._holds[uid] = hold
        self._routes.hold(app, hold)
        self._timers[app] = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._give_up, app, hold)

    def _give_up(self, app: str, hold: Hold) -> None:
        if self._routes.held(app) is hold:
            log.warning("requests were held for too long",
                        extra={"action": "travel.hold_given_up", "app": app})  # fmt: skip
            self._let_go(app)

    def _let_go(self, app: str) -> None:
        hold = self._routes.release(app)
        timer = self._timers.pop(app, None)
        if timer is not None:
            timer.cancel()
        if hold is not None:
            hold.gate.close("INSTANCE_STOPPING", 1.0)

    async def _stop_all(self, app: str, leaving: Sequence[Instance]) -> None:
        limit = max(effective_limits(it.spec()).stop_timeout for it in leaving) + GRACE_SECONDS
        try:
            async with asyncio.timeout(limit):
                for instance in leaving:
                    await self._stop(app, instance)
                while any(self._table.find(it.name) is it for it in leaving):
                    tasks = {it.task for it in leaving if it.task is not None}
                    if not tasks:
                        break  # one that has ended and stays for its data, or could not be told
                    await asyncio.wait(tasks)
                    await asyncio.sleep(0)
        except TimeoutError:
            raise SupervisorError(
                "DATA_NOT_MOVED",
                f"apps/{app} did not end within {limit:g} s.",
                resource=f"apps/{app}",
                metadata={"limit": f"{limit:g}"},
            ) from None

    async def _stop(self, app: str, instance: Instance) -> None:
        hold = self._routes.held(app)
        if hold is not None and instance.state not in (InstanceMessage.RUNNING, InstanceMessage.STOPPING):
            # What waits for its start is not to hear of its stop.
            instance.gate.forward(hold.gate)
            end = time.monotonic() + _HAND_OVER_SECONDS
            while instance.gate.figures().queued and time.monotonic() < end:  # noqa: ASYNC110 - tells nobody
                await asyncio.sleep(_TURN)
        self._lifecycle.stop(instance)

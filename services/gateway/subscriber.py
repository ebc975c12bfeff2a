"""Follows the control plane's watches, each taken up where it broke off, at whichever replica answers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import grpc

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1 import certificates_pb2 as certificates
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.catalog.v1.certificates_pb2_grpc import CertificatesStub
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from services.gateway.table import RoutingTable
from services.gateway.tls import CertificateTable, Served
from services.rpc.background import kept_running
from services.rpc.status import reason_of

log = logging.getLogger("appsupervisor.gateway")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a broken stream is tried again, doubled with each try; half of that or more is waited."""

OPTIONS = (
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A stream of which nothing is heard is found out; a control plane takes pings each second.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

WATCH_CERTIFICATES = "WatchCertificates"
_NEVER_TOLD = frozenset({"PRIVATE_KEYS_NOT_GIVEN", "METHOD_NOT_FOUND", "StatusCode.UNIMPLEMENTED"})
"""Reasons for which asking again is in vain until somebody changes the control plane."""

_ANEW = frozenset({"RESUME_TOKEN_EXPIRED", "INVALID_RESUME_TOKEN"})


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where certificates go, and the token by which they are told with their keys."""

    table: CertificateTable
    token: str = field(repr=False)
    synced: Callable[[], None]
    """Called when all are known, and again each time that a stream has begun."""


class Told(Protocol):
    """A message of any of the watches, which are of one form."""

    type: int
    resume_token: str


class Watch:
    """One of the watches: how it is called, and what becomes of what it tells."""

    def __init__(
        self,
        name: str,
        call: Callable[[int, str], AsyncIterable[Any]],
        *,
        put: Callable[[Any], None],
        remove: Callable[[str], None],
        known: Callable[[], Iterable[str]],
        synced: Callable[[], None],
        item: Callable[[Any], Any] = lambda told: (
            told.app if isinstance(told, catalog.WatchAppsResponse) else told.node
        ),
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`call` takes the number of a control plane and a resume token.

        `put` is given what was told of `item`, `remove` its name; `refused` the reason of each failure.
        """
        self.name = name
        self._call = call
        self._put = put
        self._remove = remove
        self._known = known
        self._synced = synced
        self._item = item
        self._refused = refused
        self._token = ""
        self.last_heard = 0.0
        """When the control plane last said anything, on the monotonic clock."""

    async def run(self, replicas: int, sleep: Callable[[float], Any] = asyncio.sleep) -> None:
        """Follow without end, at the next replica after each failure."""
        failures = 0
        turn = 0
        while True:
            heard = self.last_heard
            reason = ""
            try:
                await self._follow(turn % replicas)
            except grpc.RpcError as broken:
                reason = reason_of(broken) or str(getattr(broken, "code", lambda: "")())
                if reason in _ANEW:
                    self._token = ""
                self._refused(reason)
            failures = 1 if self.last_heard != heard else failures + 1
            turn += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 10))
            level = logging.INFO if failures == 1 else logging.WARNING if failures == 2 else logging.DEBUG
            log.log(
                level, "%s broke off; what is routed stays as it is", self.name,
                extra={"action": "gateway.unfollowed", "watch": self.name, "reason": reason},
            )  # fmt: skip
            await sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries

    async def _follow(self, replica: int) -> None:
        # Without a token everything is told anew: what is not told before SYNCED is gone.
        missing = None if self._token else set(self._known())
        async for told in self._call(replica, self._token):
            self.last_heard = time.monotonic()
            if told.type == catalog.WatchAppsResponse.UPSERT:
                item = self._item(told)
                self._take(self._put, item, item.name)
                if missing is not None:
                    missing.discard(item.name)
            elif told.type == catalog.WatchAppsResponse.REMOVE:
                name = self._item(told).name
                self._take(self._remove, name, name)
            elif told.type == catalog.WatchAppsResponse.SYNCED:
                for name in missing or ():
                    self._take(self._remove, name, name)
                missing = None
                self._synced()
            if told.resume_token and missing is None:
                self._token = told.resume_token

    def _take(self, change: Callable[[Any], None], item: Any, name: str) -> None:
        """Carry one change out; what cannot be stays as it is, and keeps no other from being carried out."""
        try:
            change(item)
        except Exception:
            log.exception(
                "%s: cannot be routed as it is told, and stays as it was: %s", self.name, name,
                extra={"action": "gateway.not_taken", "watch": self.name, "resource": name},
            )  # fmt: skip


class Subscriber:
    """All watches over one table. `ready` is called once what they tell is known for the first time."""

    def __init__(
        self,
        addresses: Sequence[str],
        table: RoutingTable,
        ready: Callable[[], None],
        certificates: Certificates | None = None,
    ) -> None:
        """Without `certificates` none are asked for."""
        self._addresses = addresses
        self._table = table
        self._ready = ready
        self._certificates = certificates
        self._unsynced = {"WatchApps", "WatchNodes"} | ({WATCH_CERTIFICATES} if certificates else set())
        self._stack = AsyncExitStack()
        self.watches: list[Watch] = []

    async def start(self) -> None:
        """Begin to follow; returns at once."""
        channels = [
            await self._stack.enter_async_context(grpc.aio.insecure_channel(address, OPTIONS))
            for address in self._addresses
        ]
        apps = [AppCatalogStub(channel) for channel in channels]
        nodes = [FleetStub(channel) for channel in channels]
        table = self._table
        self.watches = [
            Watch(
                "WatchApps",
                lambda turn, token: apps[turn].WatchApps(catalog.WatchAppsRequest(resume_token=token)),
                put=table.put_app, remove=table.remove_app, known=lambda: table.apps,
                synced=lambda: self._is_synced("WatchApps"),
            ),
            Watch(
                "WatchNodes",
                lambda turn, token: nodes[turn].WatchNodes(
                    fleet.WatchNodesRequest(parent="environments/-", resume_token=token)
                ),
                put=table.put_node, remove=table.remove_node, known=lambda: table.nodes,
                synced=lambda: self._is_synced("WatchNodes"),
            ),
        ]  # fmt: skip
        if self._certificates is not None:
            self.watches.append(self._certificate_watch(channels, self._certificates))
        for watch in self.watches:
            task = kept_running(partial(watch.run, len(channels)), watch.name)
            self._stack.push_async_callback(ended, task)

    def _certificate_watch(self, channels: Sequence[grpc.aio.Channel], of: Certificates) -> Watch:
        stubs = [CertificatesStub(channel) for channel in channels]
        request = certificates.WatchCertificatesRequest

        def synced() -> None:
            of.synced()
            self._is_synced(WATCH_CERTIFICATES)

        return Watch(
            WATCH_CERTIFICATES,
            lambda turn, token: stubs[turn].WatchCertificates(
                request(private_keys=True, resume_token=token),
                metadata=(("authorization", f"Bearer {of.token}"),),
            ),
            put=of.table.put, remove=of.table.remove, known=lambda: of.table.names,
            synced=synced, item=served, refused=self._keys_refused,
        )  # fmt: skip

    def _keys_refused(self, reason: str) -> None:
        """Go on without certificates that are never told: plain requests need not wait for them."""
        if reason in _NEVER_TOLD and WATCH_CERTIFICATES in self._unsynced:
            log.error(
                "the control plane tells no private keys: HTTPS is not answered (%s)", reason,
                extra={"action": "gateway.no_keys", "reason": reason},
            )  # fmt: skip
            self._is_synced(WATCH_CERTIFICATES)

    def _is_synced(self, name: str) -> None:
        if self._unsynced:
            self._unsynced.discard(name)
            if not self._unsynced:
                self._ready()

    async def close(self) -> None:
        """End all watches and their connections."""
        await self._stack.aclose()


def served(told: certificates.WatchCertificatesResponse) -> Served:
    """Return a certificate as it is served, from what the control plane tells of it."""
    it = told.certificate
    return Served(
        it.name, tuple(it.domains), it.expire_time.ToMicroseconds(), it.chain_pem, told.private_key_pem
    )


async def ended(task: asyncio.Task[None]) -> None:
    """End a task that would run on."""
    task.cancel()
    await asyncio.wait({task})

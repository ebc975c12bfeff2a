"""One pass over a node's data that belongs to no app: removes what is to go, and looks at what is there.

Also has a node hand data over to its new app, in that app's pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    ClaimDataDirectoryRequest,
    DataDirectory,
    StopInstanceRequest,
)
from services.control_plane.catalog import retention
from services.control_plane.nodes.link import NodeLink
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.reconciler import transactions
from services.control_plane.reconciler.result import Result
from services.control_plane.rules.names import retained_data_name
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, RetainedDataRecord
from services.rpc.errors import SupervisorError

FINAL = frozenset({"DATA_MISSING", "DATABASE_UNAVAILABLE", "INVALID_FIELD", "METHOD_NOT_FOUND"})
"""Refusals to hand data over that no retry changes; the last one is an older node's."""

LOOK_AGAIN_SECONDS = 2.0
"""Between two looks at data that an instance still has: it is being stopped, and tells nobody of its data."""

LAST_EPOCH = 2**62
"""Above all epochs."""

AT_ONCE = 100
"""Apps that are asked for one by one in a pass."""


class DataReconciler:
    """Makes passes over nodes; keeps only which were looked at as a whole. Lives on one loop."""

    def __init__(
        self, mirror: Mirror, links: NodeLinks, write: Callable[[Callable[[Transaction], Any]], Future[Any]]
    ) -> None:
        self._mirror = mirror
        self._links = links
        self._store_write = write
        self._looked_at: set[str] = set()

    def heard(self, node: str) -> None:
        """Note that a node is heard again: whatever is there may have changed."""
        self._looked_at.discard(node)

    async def reconcile(self, node: str) -> Result:
        """Make one pass over a node."""
        link = self._links.get(node)
        try:
            if link is None or not link.synced:
                await self._note_silence(node)
                return Result()
            failure = await self._purge_all(link)
            if node not in self._looked_at:
                await self._look_at_all(link)
                self._looked_at.add(node)
                return Result(again=failure is None, failure=failure)
            more = await self._look_at_new(link)
        except SupervisorError as refusal:
            if refusal.reason == "METHOD_NOT_FOUND":
                return Result()  # an older node: what the catalog remembers is all there is to tell
            return Result(failure=refusal)
        if more or failure is not None:
            return Result(again=more, failure=failure)
        return Result(after=LOOK_AGAIN_SECONDS if self._new(node) else 0.0)

    async def take_over(self, app: AppRecord) -> bool:
        """Have an app's node hand its data over; return whether it could be asked. Raises SupervisorError."""
        record = self._mirror.retained.get(app.status.retained_data)
        link = self._links.get(app.status.retained_data.rpartition("/retainedData/")[0])
        if record is None:  # its node was deleted, with all that is retained there
            name = app.status.retained_data
            gone = SupervisorError("DATA_MISSING", f"{name} does not exist any more.", resource=name)
            await self._write(partial(transactions.not_taken_over, name=app.name, uid=app.uid, refusal=gone))
            return True
        if link is None or not link.synced:
            return False
        request = ClaimDataDirectoryRequest(
            name=f"{record.data.app}/dataDirectories/{record.data.app_uid}", app=app.name, app_uid=app.uid
        )
        command: Callable[[Transaction], Any]
        try:
            await link.claim(request)
            command = partial(transactions.taken_over, name=app.name, uid=app.uid)
        except SupervisorError as refusal:
            if refusal.reason not in FINAL:
                raise
            command = partial(transactions.not_taken_over, name=app.name, uid=app.uid, refusal=refusal)
        await self._write(command)
        return True

    async def _note_silence(self, node: str) -> None:
        for record in self._mirror.retained_on(node):
            if record.data.state == RetainedData.PURGING and not record.data.state_reason:
                await self._write(partial(retention.hindered, name=record.name, why=retention.SILENT))

    async def _purge_all(self, link: NodeLink) -> SupervisorError | None:
        """Have what is to go removed; return the last failure."""
        failure = None
        for record in self._mirror.retained_on(link.node.name):
            if record.data.state != RetainedData.PURGING:
                continue
            try:
                await self._purge(link, record)
            except SupervisorError as refusal:
                failure = refusal
                await self._write(partial(retention.hindered, name=record.name, why=refusal.message))
            else:
                await self._write(partial(retention.purged, name=record.name))
        return failure

    async def _purge(self, link: NodeLink, record: RetainedDataRecord) -> None:
        app, uid = record.data.app, record.data.app_uid
        # No instance has that name: a node removes the data of one that is not there at once. Nothing of that
        # app comes after this, whatever its epochs were.
        await link.stop(
            StopInstanceRequest(
                name=f"{app}/instances/retained", epoch=LAST_EPOCH, purge_data=True, app_uid=uid
            )
        )
        try:
            left = uid in await self._directories(link, app)
        except SupervisorError as refusal:
            if refusal.reason != "METHOD_NOT_FOUND":
                raise
            left = False
        if left:
            why = f"An instance of {app} on {link.node.name} has it."
            raise SupervisorError(
                "DATA_NOT_REMOVED", why, resource=record.name,
                metadata={"app": app, "node": link.node.name},
            )  # fmt: skip

    async def _look_at_all(self, link: NodeLink) -> None:
        """Compare all that a node has with what the catalog remembers."""
        found = await self._directories(link, "apps/-")
        known = {record.data.app_uid: record for record in self._mirror.retained_on(link.node.name)}
        doubtful = {
            directory.name.partition("/dataDirectories/")[0]
            for uid, directory in found.items()
            if uid not in known and not self._is_of_an_app(directory)
        }
        doubtful |= {
            record.data.app
            for uid, record in known.items()
            if uid not in found and record.data.state == RetainedData.RETAINED
        }
        await self._store(link, {uid: it for uid, it in found.items() if uid in known}, [])
        # Asked again, now that the catalog was looked at: so what is removed meanwhile isn't taken for found.
        for app in sorted(doubtful):
            await self._look_at_app(link, app)

    async def _look_at_new(self, link: NodeLink) -> bool:
        """Look at data that its node has not told of yet; return whether to go on with more of it."""
        new = self._new(link.node.name)
        for app in sorted(new)[:AT_ONCE]:
            await self._look_at_app(link, app)
        return len(new) > AT_ONCE and self._new(link.node.name) != new

    def _new(self, node: str) -> set[str]:
        """Return the apps that have left data which their node has not told of yet."""
        return {
            record.data.app
            for record in self._mirror.retained_on(node)
            if record.data.state == RetainedData.RETAINED and not record.data.HasField("observe_time")
        }

    async def _look_at_app(self, link: NodeLink, app: str) -> None:
        known = [
            record
            for record in self._mirror.retained_on(link.node.name)
            if record.data.app == app and record.data.state == RetainedData.RETAINED
        ]
        ids = {record.data.app_uid for record in known}
        directories = await self._directories(link, app)
        found = {uid: it for uid, it in directories.items() if uid in ids or not self._is_of_an_app(it)}
        await self._store(link, found, [it for it in known if it.data.app_uid not in directories])

    async def _store(
        self, link: NodeLink, found: dict[str, DataDirectory], gone: list[RetainedDataRecord]
    ) -> None:
        node = link.node.name
        told = [it for uid, it in found.items() if not it.hosted and self._is_news(node, uid, it)]
        if told or gone:
            names = [(record.name, record.revision) for record in gone]
            await self._write(partial(retention.observed, node=node, found=told, gone=names))

    def _is_news(self, node: str, uid: str, directory: DataDirectory) -> bool:
        record = self._mirror.retained.get(retained_data_name(node, uid))
        if record is None or record.data.state == RetainedData.MISSING:
            return True
        return not record.data.HasField("observe_time") or record.data.size_bytes != directory.size_bytes

    def _is_of_an_app(self, directory: DataDirectory) -> bool:
        owner = self._mirror.apps.get(directory.name.partition("/dataDirectories/")[0])
        return directory.hosted or (owner is not None and owner.uid == directory.app_uid)

    async def _directories(self, link: NodeLink, parent: str) -> dict[str, DataDirectory]:
        return {directory.app_uid: directory async for directory in link.client.directories(parent)}

    async def _write(self, command: Callable[[Transaction], Any]) -> None:
        await asyncio.wrap_future(self._store_write(command))

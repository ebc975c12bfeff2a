"""Removals of apps' data that were asked for: done when the last instance is gone, told when they fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from runtime_node.instances.databases import Databases
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.instances")


class Purges:
    """By app id and uid. `remove_log` removes what an app has logged. Belongs to the control loop."""

    def __init__(self, databases: Databases, remove_log: Callable[[str, str], Awaitable[None]]) -> None:
        self._databases = databases
        self._remove_log = remove_log
        self._wanted: set[tuple[str, str]] = set()
        self._under_way: dict[tuple[str, str], asyncio.Task[SupervisorError | None]] = {}

    def ask(self, app: str, uid: str) -> None:
        """Want the data of an app removed once nothing of it runs."""
        self._wanted.add((app, uid))

    def forget(self, app: str, uid: str) -> None:
        """Want it no more: the app is started again."""
        self._wanted.discard((app, uid))

    def wants(self, app: str, uid: str) -> bool:
        """Return whether it is wanted and not done."""
        return (app, uid) in self._wanted

    async def carry_out(self, app: str, uid: str) -> SupervisorError | None:
        """Remove what is wanted removed; return DATA_NOT_REMOVED if that failed. What fails stays wanted.

        Calls at the same time share one removal, which goes on if a caller is cancelled.
        """
        if (app, uid) not in self._wanted:
            return None
        task = self._under_way.get((app, uid))
        if task is None:
            task = self._under_way[app, uid] = asyncio.create_task(self._remove(app, uid))
            task.add_done_callback(lambda _: self._under_way.pop((app, uid), None))
        return await asyncio.shield(task)

    async def _remove(self, app: str, uid: str) -> SupervisorError | None:
        try:
            await self._remove_log(app, uid)
            was_there = await asyncio.to_thread(self._databases.purge, app, uid)
        except OSError as fault:
            log.error(
                "data could not be removed", exc_info=fault,
                extra={"action": "instance.purge_failed", "app": app, "uid": uid},
            )  # fmt: skip
            why, where = fault.strerror or type(fault).__name__, fault.filename or "its data directory"
            return SupervisorError(
                "DATA_NOT_REMOVED",
                f"The app's data could not be removed from its node: {why} ({where}).",
                resource=f"apps/{app}",
                metadata={"uid": uid},
            )
        self._wanted.discard((app, uid))
        if was_there:  # asked for again, there is nothing left to tell of
            log.info("purged", extra={"action": "app.purged", "app": app, "uid": uid})
        return None

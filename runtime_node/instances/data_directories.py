"""Data directories as the control plane sees them: listed with their sizes, handed from app to app.

Names and sizes alone are read; a symbolic link is neither followed nor told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    ClaimDataDirectoryRequest,
    DataDirectory,
    ListDataDirectoriesRequest,
)
from runtime_node import rules
from runtime_node.instances.databases import DATABASE, Databases, owner_of
from runtime_node.instances.page_tokens import DEFAULT_PAGE, MAX_PAGE, read_token, write_token
from runtime_node.instances.purges import Purges
from runtime_node.instances.table import InstanceTable
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.instances")

PAGE_SECONDS = 1.0
"""A page ends early beyond this: its caller waits three seconds for an answer."""
MAX_FILES = 100_000
"""Files of one directory that are counted: about a second's worth."""


class DataDirectories:
    """The commands on data directories. Belongs to the control loop; the disk is waited for elsewhere."""

    def __init__(
        self,
        databases: Databases,
        table: InstanceTable,
        purges: Purges,
        remove_log: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """`remove_log` removes what an app has logged, by app id and uid."""
        self._databases = databases
        self._table = table
        self._purges = purges
        self._remove_log = remove_log
        self._claiming = asyncio.Lock()

    async def list(self, request: ListDataDirectoriesRequest) -> tuple[list[DataDirectory], str]:
        """Return a page by name, and the token of the next. Raises INVALID_FIELD, INVALID_PAGE_TOKEN."""
        app = rules.check_parent(request.parent)
        rules.check_page_size(request.page_size)
        after = read_token(request.page_token, request.parent) if request.page_token else ""
        count = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        hosted = {instance.uid for instance in self._table.all()}
        page, more = await asyncio.to_thread(_page, self._databases.root, app, after, count, hosted)
        return page, write_token(request.parent, page[-1].name) if more else ""

    async def claim(self, request: ClaimDataDirectoryRequest) -> DataDirectory:
        """Hand a directory over; see ClaimDataDirectory for the rules and errors."""
        app, uid, to_app, to_uid = rules.check_claim(request)
        async with self._claiming:  # one after the other: a repeat must not meet the try before it
            if any(instance.uid == uid for instance in self._table.of_app(app)):
                raise SupervisorError(
                    "INSTANCE_EXISTS", f"An instance of apps/{app} has the data.", resource=f"apps/{app}"
                )
            if self._purges.wants(app, uid):
                raise SupervisorError(
                    "DATA_MISSING", f"The data of apps/{app} is being removed.", metadata={"uid": uid}
                )
            await asyncio.to_thread(self._databases.hand_over, app, uid, to_app, to_uid)
            try:
                await self._remove_log(app, uid)
            except OSError as fault:
                # Nobody finds it any more, and it takes a few MiB: no reason to refuse the data.
                log.warning(
                    "the log of an app could not be removed", exc_info=fault,
                    extra={"action": "app.log_left", "app": app, "uid": uid},
                )  # fmt: skip
        log.info(
            "data handed over",
            extra={"action": "app.data_handed_over", "app": to_app, "uid": to_uid, "before": f"{app}.{uid}"},
        )
        hosted = {instance.uid for instance in self._table.all()}
        return await asyncio.to_thread(_describe, self._databases.root, to_app, to_uid, hosted)


def _page(
    root: Path, app: str | None, after: str, count: int, hosted: set[str]
) -> tuple[list[DataDirectory], bool]:
    """Return up to `count` directories that follow a name, and whether there are more."""
    end = time.monotonic() + PAGE_SECONDS
    found = sorted((name, ids) for name, ids in _named(root, app) if name > after)
    page: list[DataDirectory] = []
    for _, ids in found:
        if len(page) == count or (page and time.monotonic() > end):
            return page, True
        page.append(_describe(root, *ids, hosted))
    return page, False


def _named(root: Path, app: str | None) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the directories that are marked as what their name says, or have no mark yet."""
    try:
        entries = list(os.scandir(root))
    except FileNotFoundError:
        return
    for entry in entries:
        ids = rules.directory_ids(entry.name)
        if ids is None or app not in (None, ids[0]) or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            owner = owner_of(root / entry.name)
        except OSError:
            continue  # gone meanwhile, or something that no app may be given
        if owner in (None, ids[1]):
            yield _name(*ids), ids


def _describe(root: Path, app: str, uid: str, hosted: set[str]) -> DataDirectory:
    directory = root / f"{app}.{uid}"
    try:
        kept = stat.S_ISREG(os.lstat(directory / DATABASE).st_mode)
    except OSError:
        kept = False
    return DataDirectory(
        name=_name(app, uid),
        app_uid=uid,
        size_bytes=0 if uid in hosted else _size_of(directory),
        has_database=kept,
        hosted=uid in hosted,
    )


def _size_of(directory: Path) -> int:
    size = count = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            count += 1
            if count > MAX_FILES:
                return size
            try:
                size += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return size


def _name(app: str, uid: str) -> str:
    return f"apps/{app}/dataDirectories/{uid}"

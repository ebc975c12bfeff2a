"""Restarts apps when their code changes on disk: each restart is a swap, so no request is lost.

Which apps: those whose entrypoint's top-level module is in the folder in which a file changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from watchfiles import PythonFilter, awatch

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog

if TYPE_CHECKING:
    # Of the stubs alone: at run time both kinds are AppCatalogStub.
    from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogAsyncStub

CALL_TIMEOUT = 10.0
ACTOR = (("x-actor", "up --reload"),)
"""Who an app's timeline names for a restart."""
SETTLE_MILLISECONDS = 400
"""Changes that come together, as an editor or a checkout makes them, are one."""

BESIDE_MODULES = (".html", ".j2", ".jinja", ".jinja2", ".json", ".sql", ".toml", ".yaml", ".yml")
"""Files that count as code beside those of Python, as they do in the digest that instances tell."""


async def reload_on_change(
    apps: AppCatalogAsyncStub, folders: Iterable[Path], say: Callable[[str], None]
) -> None:
    """Watch folders for ever, and restart the running apps whose code is in one that changed; `say` tells."""
    watched = list(folders)
    filtered = PythonFilter(extra_extensions=BESIDE_MODULES)
    async for changes in awatch(*watched, watch_filter=filtered, debounce=SETTLE_MILLISECONDS):
        changed = {folder for folder in watched for _, path in changes if Path(path).is_relative_to(folder)}
        names = sorted(Path(path).name for _, path in changes)
        for name in await _users_of(apps, changed):
            say(f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} changed: restarting {name}")
            try:
                await apps.RestartApp(
                    catalog.RestartAppRequest(name=name), timeout=CALL_TIMEOUT, metadata=ACTOR
                )
            except grpc.aio.AioRpcError as refused:
                say(f"{name} was not restarted: {refused.details()}")


async def _users_of(apps: AppCatalogAsyncStub, folders: set[Path]) -> list[str]:
    """Return the apps that are wanted to run and whose code is in one of the folders."""
    found: list[str] = []
    request = catalog.ListAppsRequest(page_size=1000, filter="desired_state = RUNNING")
    while True:
        try:
            page = await apps.ListApps(request, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError:
            return found  # the control plane is away for a moment; the next change is seen again
        found += [app.name for app in page.apps if any(is_in(app.entrypoint, folder) for folder in folders)]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def is_in(entrypoint: str, folder: Path) -> bool:
    """Tell whether an entrypoint's code is in a folder, which the entrypoint may name first."""
    top, _, rest = entrypoint.partition(":")[0].partition(".")
    if top == folder.name and rest:
        top = rest.partition(".")[0]
    return (folder / top).is_dir() or (folder / f"{top}.py").is_file()

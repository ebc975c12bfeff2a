"""Imports an app's code before the app comes, so that its start has nothing left to import.

Only what any start here would import the same way: a factory that shares the node's process. An app object
may open its database when it is imported, and has a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.isolation.abandonable import run_abandonable
from runtime_node.loader import LoadedCode, Loader, parse_entrypoint
from runtime_node.loader.listing import no_such_module
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.tiers")

Tier: TypeAlias = InstanceSpec.IsolationTier.ValueType

IMPORT_SECONDS = 60.0
"""The longest that an import is waited for; what hangs here would hang in its start, which tells it."""

FINAL = frozenset(
    {"ENTRYPOINT_MALFORMED", "ENTRYPOINT_MODULE_NOT_FOUND", "ENTRYPOINT_ATTRIBUTE_NOT_FOUND",
     "ENTRYPOINT_IMPORT_FAILED", "ENTRYPOINT_NOT_AN_APP"}
)  # fmt: skip
"""What would keep the app from starting, too; what else keeps code from being imported here may not."""


class CodeAhead:
    """Imports code, and keeps it in memory until it is let go. Belongs to the control loop."""

    def __init__(self, loader: Loader, located: Callable[[SupervisorError], SupervisorError]) -> None:
        """`located` adds to an error where this node looks for code."""
        self._loader = loader
        self._located = located

    async def fetch(self, entrypoint: str, isolation: Tier) -> Callable[[], None]:
        """Import the code, where that is safe; return what lets it go, to be called once.

        Raises SupervisorError, one of `FINAL`, when it cannot be imported here.
        """
        try:
            async with asyncio.timeout(IMPORT_SECONDS):
                if not await asyncio.to_thread(self._is_shared, entrypoint, isolation):
                    return _nothing
                load = partial(self._loader.load, entrypoint)
                code = await run_abandonable(load, name=f"import {entrypoint}")
        except TimeoutError:
            log.warning("an import takes too long: %s", entrypoint, extra={"action": "code.import_hangs"})
            return _nothing
        except SupervisorError as failure:
            if failure.reason not in FINAL:
                return _nothing
            raise self._located(failure) from None
        return partial(_let_go, code)

    def _is_shared(self, entrypoint: str, isolation: Tier) -> bool:
        """Tell whether the code is imported by the node's own process. Raises SupervisorError of `FINAL`."""
        if not self._loader.has(entrypoint):
            raise no_such_module(parse_entrypoint(entrypoint).top, self._loader.app_dirs)
        if isolation == InstanceSpec.PROCESS or self._loader.kind_of(entrypoint) != "factory":
            return False
        return not self._loader.needs_process(entrypoint)


def _let_go(code: LoadedCode) -> None:
    # Its modules stay for the app that uses them by now; of code that nobody uses the loader keeps some.
    asyncio.get_running_loop().run_in_executor(None, code.release)


def _nothing() -> None:
    """Let go nothing."""

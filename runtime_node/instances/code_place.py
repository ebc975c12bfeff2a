"""Where this node looks for code: part of each error of an entrypoint that could not be imported.

Said here and not by the loader, which in the process tier is the app's own and knows of no node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import pathsep
from pathlib import Path

from services.rpc.errors import SupervisorError

NOT_IMPORTED = frozenset(
    {"ENTRYPOINT_MODULE_NOT_FOUND", "ENTRYPOINT_ATTRIBUTE_NOT_FOUND", "ENTRYPOINT_IMPORT_FAILED"}
)
SHOWN = 8
"""Directories that a message names; its metadata has them all."""


@dataclass(frozen=True)
class CodePlace:
    """One node's name, and its app directories in the order in which they are searched."""

    node: str
    app_dirs: Sequence[Path]

    def located(self, error: SupervisorError) -> SupervisorError:
        """Return the error with the place in its message and metadata, if code could not be imported."""
        if error.reason not in NOT_IMPORTED:
            return error
        named = ", ".join(map(str, self.app_dirs[:SHOWN])) or "none"
        more = f" and {len(self.app_dirs) - SHOWN} more" if len(self.app_dirs) > SHOWN else ""
        return SupervisorError(
            error.reason,
            f"{error.message} (on {self.node}; its app directories: {named}{more})",
            code=error.code,
            resource=error.resource,
            metadata={
                **error.metadata,
                "node": self.node,
                "app_dirs": pathsep.join(map(str, self.app_dirs)),
            },
        )

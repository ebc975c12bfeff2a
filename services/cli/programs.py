"""Commands that start the programs; every flag and variable of theirs reaches them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

PROGRAMS = {
    "up": (
        "compose.local",
        "Run everything and two demo apps on this machine.\n\nExample: appsupervisor up --app-dir my",
    ),
    "control-plane": (
        "services.control_plane",
        "Run a control plane.\n\nExample: appsupervisor control-plane --help",
    ),
    "node": ("runtime_node", "Run a node.\n\nExample: appsupervisor node --help"),
}
"""Each program's module, and what `--help` says of it."""

_AS_GIVEN = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, (module, text) in PROGRAMS.items():
        app.command(name, help=text, context_settings=_AS_GIVEN, rich_help_panel="Programs")(_starter(module))


def _starter(module: str) -> Callable[[typer.Context], None]:
    def start(context: typer.Context) -> None:
        # In place of this process: signals and the exit status are the program's own.
        os.execv(sys.executable, [sys.executable, "-m", module, *context.args])  # noqa: S606 - our own programs

    return start

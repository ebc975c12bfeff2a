"""Commands that start the programs; every flag and variable of theirs reaches them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

PROGRAMS = {
    "up": (
        "compose.local",
        "Run everything and two demo apps on this machine.\n\n"
        "Example: appsupervisor up --app-dir my --reload",
    ),
    "control-plane": (
        "services.control_plane",
        "Run a control plane.\n\n"
        "Example: appsupervisor control-plane --listen 127.0.0.1:7400 --database-url sqlite:///catalog.db",
    ),
    "node": (
        "runtime_node",
        "Run a node.\n\n"
        "Example: appsupervisor node --control-plane 127.0.0.1:7400 --node node-2 --data-dir data/node-2 "
        "--listen 127.0.0.1:7402 --http-listen 127.0.0.1:8081",
    ),
    "gateway": (
        "services.gateway",
        "Run a gateway: Envoy in front of all nodes.\n\n"
        "Example: appsupervisor gateway --control-plane 127.0.0.1:7400 --listen 127.0.0.1:8000",
    ),
}
"""Each program's module, and what the list of commands says of it; its own `--help` has the example too."""

_AS_GIVEN = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, (module, text) in PROGRAMS.items():
        app.command(name, help=text, context_settings=_AS_GIVEN, rich_help_panel="Programs")(_starter(module))


def _starter(module: str) -> Callable[[typer.Context], None]:
    def start(context: typer.Context) -> None:
        # In place of this process: signals and the exit status are the program's own. `-P`: a `calendar.py`
        # in the folder that it is called from is somebody's own, and not what a library imports.
        os.execv(sys.executable, [sys.executable, "-P", "-m", module, *context.args])  # noqa: S606 - our own programs

    return start

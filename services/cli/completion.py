"""What the shell offers while a command is typed: the apps there are. Silent when nobody answers."""

from __future__ import annotations

import typer

from appsupervisor.catalog.v1.app_catalog_pb2 import ListAppsRequest
from services.cli.client import Client, short
from services.cli.contexts import Context, read_contexts
from services.cli.errors import CliError

SECONDS = 1.0


def complete_app(context: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of apps that begin like this."""
    parent = context.find_root().params
    try:
        address = parent.get("address")
        client = Client(Context(address) if address else read_contexts().chosen(parent.get("context") or ""))
        request = ListAppsRequest(page_size=100, filter=f"name = {incomplete}*" if incomplete else "")
        page = client.call(client.catalog.ListApps, request, timeout=SECONDS)
        return [short(app.name) for app in page.apps]
    except CliError:
        return []

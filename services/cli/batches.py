"""One command on many apps, chosen by labels or by a filter: one operation, and what came of each app."""

from __future__ import annotations

import uuid
from typing import Any

import typer
from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from services.cli.client import short
from services.cli.errors import CliError, Exit, from_status
from services.cli.session import Session

SHOWN = 20
"""Failures that are told one by one."""


def chosen(name: str, wanted: str) -> bool:
    """Tell whether many apps are meant, by the filter `wanted`. Raises CliError for both or neither."""
    if bool(name) == bool(wanted):
        raise CliError("Name one app, or choose several with --selector or --filter.", Exit.USAGE)
    return bool(wanted)


def on_many(session: Session, verb: str, wanted: str, wait: bool, timeout: float, **fields: Any) -> None:
    """Have one of `Start`, `Stop`, `Restart`, `Delete` done to all apps that match, and tell what came of it.

    Ends with status FAILED if any app has failed. Raises CliError.
    """
    request = getattr(catalog, f"Batch{verb}AppsRequest")(
        filter=wanted, request_id=str(uuid.uuid4()), **fields
    )
    operation: Operation = session.client.call(getattr(session.client.catalog, f"Batch{verb}Apps"), request)
    tell(session, verb, operation, wait, timeout)


def tell(session: Session, verb: str, operation: Operation, wait: bool, timeout: float) -> None:
    """Wait for a batch and tell what came of it. Ends with status FAILED if any app has failed."""
    ended = session.finished(operation, wait, timeout)
    if ended is None:
        return
    if ended.HasField("error"):
        raise from_status(ended.error)
    response = catalog.BatchResponse()
    ended.response.Unpack(response)
    progress = catalog.OperationMetadata()
    ended.metadata.Unpack(progress)
    total, failed = progress.batch.total_count, progress.batch.failed_count
    session.output.note(f"{verb}: {total - failed} of {total} apps done." if total else "No app matches.")
    for result in [one for one in response.results if one.HasField("status")][:SHOWN]:
        session.output.note(f"  {short(result.app)}: {result.status.message}")
    if failed:
        raise typer.Exit(int(Exit.FAILED))

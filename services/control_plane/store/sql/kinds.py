"""The kinds of records that the change log tells of: each one's table, feed and columns.

One more kind is one more line here; loading, following and writing go through this list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.control_plane.store.sql.rows import (
    Row,
    app_record,
    app_values,
    batch_record,
    batch_values,
    certificate_record,
    certificate_values,
    database_server_record,
    database_server_values,
    environment_record,
    environment_values,
    node_record,
    node_values,
    operation_record,
    operation_values,
    placement_record,
    placement_values,
    retained_data_record,
    retained_data_values,
)
from services.control_plane.store.sql.tables import (
    AppRow,
    BatchRow,
    CatalogTable,
    CertificateRow,
    DatabaseServerRow,
    EnvironmentRow,
    NodeRow,
    OperationRow,
    PlacementRow,
    RetainedDataRow,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of record. Its table's first column is its key, the last one its revision."""

    name: str
    """As the change log has it."""
    feed: str
    """The mirror's feed, or its index of placements, and the part of a write set."""
    row: type[CatalogTable]
    values: Callable[[Any], dict[str, Any]]
    record: Callable[[Row], Any]
    resumable: bool
    """Whether readers may resume from before this process began: then it must know what was removed."""
    fixed: tuple[str, ...] = ()
    """Columns that never change in the life of a row: leaving them out spares their index."""


KINDS = (  # parents before children, as foreign keys want it
    Kind(
        "database_server",
        "database_servers",
        DatabaseServerRow,
        database_server_values,
        database_server_record,
        True,
    ),
    Kind("environment", "environments", EnvironmentRow, environment_values, environment_record, True),
    Kind("certificate", "certificates", CertificateRow, certificate_values, certificate_record, True),
    Kind("node", "nodes", NodeRow, node_values, node_record, True),
    Kind("app", "apps", AppRow, app_values, app_record, True, ("uid",)),
    Kind("placement", "placements", PlacementRow, placement_values, placement_record, False),
    Kind("retained_data", "retained", RetainedDataRow, retained_data_values, retained_data_record, False),
    Kind("operation", "operations", OperationRow, operation_values, operation_record, False),
    Kind("batch", "batches", BatchRow, batch_values, batch_record, False, ("requests",)),
)

"""What an app does without its node or its control plane, where it does not say so itself. Pure."""

from __future__ import annotations

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec


def effective_availability(spec: App | InstanceSpec) -> InstanceSpec.Availability.ValueType:
    """Return whether an app answers without a lease; not where a second copy could write its database."""
    if spec.availability:
        return spec.availability
    return InstanceSpec.CONSISTENT if _kind(spec.database) == "external" else InstanceSpec.AVAILABLE


def effective_failover(spec: App) -> App.Failover.ValueType:
    """Return what becomes of an app whose node is lost; where its data is on the node it waits for it."""
    if spec.failover:
        return spec.failover
    return App.MANUAL if keeps_data_on_node(spec) else App.AUTOMATIC


def keeps_data_on_node(spec: App | InstanceSpec) -> bool:
    """Tell whether an app's data is in its node's data directory."""
    return _kind(spec.database) == "sqlite"


def _kind(database: Database) -> str:
    return database.WhichOneof("kind") or "sqlite"

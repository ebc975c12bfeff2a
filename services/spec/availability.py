"""What an app does without its node or its control plane, where it does not say so itself. Pure."""

from __future__ import annotations

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec

_BY_DATABASE = {
    "sqlite": App.DATA_ON_NODE,
    "no_database": App.WITHOUT_DATABASE,
    "postgres": App.DATABASE_FENCED,
    "external": App.DATABASE_SHARED,
}


def effective_availability(spec: App | InstanceSpec) -> InstanceSpec.Availability.ValueType:
    """Return whether an app answers without a lease, on a node that is not the only one of its environment.

    By default not where a second copy could write its database.
    """
    if spec.availability:
        return spec.availability
    return InstanceSpec.CONSISTENT if _kind(spec.database) == "external" else InstanceSpec.AVAILABLE


def serves_alone(spec: App | InstanceSpec) -> bool:
    """Tell whether an app answers without a lease on a node that serves alone, and nowhere else."""
    return not spec.availability and _kind(spec.database) == "external"


def explained_availability(
    spec: App, *, alone: bool
) -> tuple[InstanceSpec.Availability.ValueType, App.AvailabilityReason.ValueType]:
    """Return the availability that holds, and why; `alone` tells whether its node serves alone."""
    kind = _kind(spec.database)
    # Where the database is no outside one the default is stored as if it had been asked for.
    if spec.availability and (kind == "external" or spec.availability != InstanceSpec.AVAILABLE):
        return spec.availability, App.ASKED_FOR
    if alone and serves_alone(spec):
        return InstanceSpec.AVAILABLE, App.ONLY_NODE
    return effective_availability(spec), _BY_DATABASE[kind]


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

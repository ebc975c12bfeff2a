"""What an environment gives its apps where their own fields are not set, and its rules. Pure, total."""

from __future__ import annotations

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import AppDefaults
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from services.control_plane.rules.app_rules import app_violations
from services.rpc.errors import Violation
from services.spec.availability import keeps_data_on_node


def with_defaults(app: App, defaults: AppDefaults) -> App:
    """Return an app with the defaults of its environment where its own fields are not set.

    A default never breaks a rule together with what was set: it is left out then.
    """
    if not defaults.ByteSize():
        return app
    full = App()
    full.CopyFrom(app)
    if full.database.WhichOneof("kind") == "postgres":
        full.database.postgres.server = full.database.postgres.server or defaults.database_server
    full.activation = full.activation or defaults.activation
    dormant = full.activation == InstanceSpec.ON_REQUEST
    if dormant and defaults.HasField("idle_timeout") and not full.HasField("idle_timeout"):
        full.idle_timeout.CopyFrom(defaults.idle_timeout)
    full.isolation = full.isolation or defaults.isolation
    limits = Limits()
    limits.CopyFrom(defaults.limits)
    limits.MergeFrom(full.limits)  # zero of a field without presence is one that is not set
    full.limits.CopyFrom(limits)
    for key, value in defaults.node_selector.items():
        if key not in full.node_selector:
            full.node_selector[key] = value
    full.availability = full.availability or defaults.availability
    if defaults.failover != App.AUTOMATIC or not keeps_data_on_node(full):
        full.failover = full.failover or defaults.failover
    return full


def default_violations(defaults: AppDefaults, prefix: str) -> list[Violation]:
    """Return everything that is wrong with an environment's defaults, by the rules of an app's fields."""
    sample = App(
        entrypoint="app:app",
        activation=defaults.activation,
        isolation=defaults.isolation,
        limits=defaults.limits,
        node_selector=defaults.node_selector,
        availability=defaults.availability,
        failover=defaults.failover,
    )
    if defaults.HasField("idle_timeout"):
        sample.idle_timeout.CopyFrom(defaults.idle_timeout)
    if defaults.database_server:
        sample.database.postgres.server = defaults.database_server
    else:
        sample.database.no_database.SetInParent()
    server = f"{prefix}.database.postgres.server"
    return [
        Violation(f"{prefix}.database_server", it.rule) if it.field == server else it
        for it in app_violations(sample, prefix)
    ]

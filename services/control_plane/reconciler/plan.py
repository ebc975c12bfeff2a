"""What to do: the calls that bring an app's node from what is to what is wanted. Pure.

The rules: the wanted version is started when it isn't there; once it is ready every other instance
is stopped; an instance that is neither wanted nor ready is stopped at once; nothing is decided on a
node that cannot be heard.
"""

from __future__ import annotations

from dataclasses import dataclass

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DeleteAppRequest
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Instance,
    InstanceSpec,
    StartInstanceRequest,
    StopInstanceRequest,
)
from services.control_plane.reconciler.observation import (
    View,
    instance_name,
    is_ready,
    own_instances,
    wanted_spec,
    wanted_version,
)
from services.control_plane.store.records import AppRecord


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls to make now, and whether the app may be removed from the catalog after them."""

    start: StartInstanceRequest | None = None
    stop: tuple[StopInstanceRequest, ...] = ()
    remove: bool = False


def plan(record: AppRecord, view: View) -> Plan:
    """Return what to do next for an app."""
    if view.node is None:
        return Plan(remove=bool(record.deleting))
    if not view.reachable:
        return Plan()
    if record.deleting or record.spec.desired_state == App.STOPPED:
        return _plan_end(record, view)
    version = wanted_version(record)
    name = instance_name(record, version)
    mine = own_instances(record, view)
    wanted = mine.get(name)
    stops = tuple(
        _stop(record, other)
        for other in view.instances.values()
        if other.state != Instance.STOPPING
        and (other.name not in mine or (other.name != name and (is_ready(wanted) or not is_ready(other))))
    )
    if name in view.instances:  # it is there, or another app's of that name has to go first
        return Plan(stop=stops)
    return Plan(start=StartInstanceRequest(spec=_instance_spec(record, name)), stop=stops)


def _plan_end(record: AppRecord, view: View) -> Plan:
    purge = record.deleting == DeleteAppRequest.DROP
    stops = tuple(
        _stop(record, instance, purge=purge)
        for instance in view.instances.values()
        if instance.state != Instance.STOPPING
    )
    if view.instances or not record.deleting:
        return Plan(stop=stops)
    if purge:
        rest = Instance(name=instance_name(record, record.target), app_uid=record.uid)
        return Plan(stop=(_stop(record, rest, purge=True),), remove=True)
    return Plan(remove=True)


def stop_orphan(instance: Instance) -> StopInstanceRequest:
    """Return the call that ends an instance which belongs to no app here; its data stays."""
    return StopInstanceRequest(name=instance.name, epoch=instance.epoch, app_uid=instance.app_uid)


def _stop(record: AppRecord, instance: Instance, *, purge: bool = False) -> StopInstanceRequest:
    """Return the call that ends an instance. Only the app's own data may go with it."""
    if instance.app_uid not in ("", record.uid):
        return stop_orphan(instance)
    epoch = max(instance.epoch, record.target.epoch)
    return StopInstanceRequest(name=instance.name, epoch=epoch, app_uid=record.uid, purge_data=purge)


def _instance_spec(record: AppRecord, name: str) -> InstanceSpec:
    version = wanted_version(record)
    spec = wanted_spec(record)
    # What the app has given up may be another's by now, also where its version before goes on serving.
    domains = [domain for domain in spec.domains if domain in record.spec.domains]
    wanted = InstanceSpec(
        name=name,
        app_uid=record.uid,
        generation=version.generation,
        epoch=version.epoch,
        entrypoint=spec.entrypoint,
        domains=domains,
        activation=spec.activation,
        isolation=spec.isolation,
    )
    wanted.env.update(spec.env)
    wanted.secret_env.update(spec.secret_env)
    for field in ("config", "database", "idle_timeout", "limits", "health_check", "restart_policy"):
        if spec.HasField(field):
            getattr(wanted, field).CopyFrom(getattr(spec, field))
    return wanted

"""What to do: the calls that bring an app's node from what is to what is wanted. Pure.

The rules: the wanted version is started when it isn't there; once it is ready every other instance
is stopped; an instance that is neither wanted nor ready is stopped at once; nothing is decided on a
node that cannot be heard.
"""

from __future__ import annotations

from dataclasses import dataclass

from appsupervisor.catalog.v1.app_catalog_pb2 import DROP, STOPPED
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    InstanceSpec,
    StartInstanceRequest,
    State,
    StopInstanceRequest,
)
from services.control_plane.reconciler.observation import (
    View,
    instance_name,
    is_ready,
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
    if record.deleting or record.spec.desired_state == STOPPED:
        return _plan_end(record, view)
    version = wanted_version(record)
    name = instance_name(record, version)
    wanted = view.instances.get(name)
    stops = tuple(
        _stop(other.name, max(other.epoch, record.target.epoch), other.app_uid)
        for other in view.instances.values()
        if other.name != name
        and other.state != State.STOPPING
        and (is_ready(wanted) or not is_ready(other) or other.app_uid != record.uid)
    )
    if wanted is not None and wanted.app_uid == record.uid:
        return Plan(stop=stops)
    return Plan(start=StartInstanceRequest(spec=_instance_spec(record, name)), stop=stops)


def _plan_end(record: AppRecord, view: View) -> Plan:
    purge = record.deleting == DROP
    stops = tuple(
        _stop(i.name, max(i.epoch, record.target.epoch), i.app_uid, purge=purge)
        for i in view.instances.values()
        if i.state != State.STOPPING
    )
    if view.instances or not record.deleting:
        return Plan(stop=stops)
    if purge:
        name = instance_name(record, record.target)
        return Plan(stop=(_stop(name, record.target.epoch, record.uid, purge=True),), remove=True)
    return Plan(remove=True)


def _stop(name: str, epoch: int, uid: str, *, purge: bool = False) -> StopInstanceRequest:
    return StopInstanceRequest(name=name, epoch=epoch, app_uid=uid, purge_data=purge)


def _instance_spec(record: AppRecord, name: str) -> InstanceSpec:
    version = wanted_version(record)
    spec = wanted_spec(record)
    wanted = InstanceSpec(
        name=name,
        app_uid=record.uid,
        generation=version.generation,
        epoch=version.epoch,
        entrypoint=spec.entrypoint,
        domains=spec.domains,
        activation=spec.activation,
        isolation=spec.isolation,
    )
    wanted.env.update(spec.env)
    wanted.secret_env.update(spec.secret_env)
    for field in ("config", "database", "idle_timeout", "limits", "health_check", "restart_policy"):
        if spec.HasField(field):
            getattr(wanted, field).CopyFrom(getattr(spec, field))
    return wanted

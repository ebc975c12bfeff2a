"""Works out the calls that bring an app's nodes from what is to what its placements say. Pure.

The rules: what is wanted is started where it isn't; once it is ready everything else is stopped; what is
neither wanted nor ready is stopped at once; nothing is asked of a node that cannot be heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DeleteAppRequest
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Instance,
    InstanceSpec,
    StartInstanceRequest,
    StopInstanceRequest,
)
from services.control_plane.operations.database_moves import is_stopped_for
from services.control_plane.placement.assignment import ENDING, Assignment, spec_of
from services.control_plane.placement.canary import is_announced
from services.control_plane.placement.data_travel import is_last_owner, leaves_copy
from services.control_plane.placement.failover import waits_for
from services.control_plane.placement.snapshot import NodeView, Snapshot, has_ended, is_own, is_ready
from services.control_plane.reconciler.homes import home_besides, told_under
from services.control_plane.store.records import AppRecord, PlacementRecord, Role

SWITCH_SECONDS = 3.0
"""How long what was replaced from another node goes on serving, where that node cannot forward what still
comes to it: those who follow `uri` need to hear of it."""

ANNOUNCED_SECONDS = 1.0
"""How long a version on trial is announced before it is started: gateways are to give it no more than its
share from its first moment on."""

_SPEC_MESSAGES = ("config", "database", "idle_timeout", "limits", "health_check", "restart_policy")


@dataclass(frozen=True, slots=True)
class Start:
    """A placement whose instance is to be started."""

    placement: PlacementRecord
    request: StartInstanceRequest


@dataclass(frozen=True, slots=True)
class Stop:
    """An instance that is to end; `ends` is the placement that is over once its node says that it is gone."""

    node: str
    request: StopInstanceRequest
    ends: PlacementRecord | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls to make now, stops first, and whether nothing is left of the app that could keep data."""

    starts: tuple[Start, ...] = ()
    """At most one of each replica."""
    stop: tuple[Stop, ...] = ()
    remove: bool = False
    after: float = 0.0
    """There is more to do after so many seconds; 0 if there isn't."""


def plan(app: AppRecord, assigned: Assignment, seen: Snapshot, now: int) -> Plan:
    """Return what to do next for an app, as of now (µs)."""
    if app.deleting and not assigned.placements:
        return Plan(remove=True)
    ending = bool(app.deleting) or app.spec.desired_state == App.STOPPED or is_stopped_for(app)
    if not ending and _is_alone(assigned, seen):
        return Plan(after=assigned.after)
    if not ending and (start := _only_start(app, assigned, seen)) is not None:
        return Plan((start,), after=assigned.after)
    lingering = {} if ending else dict(_lingering(assigned, seen, now))
    after = min([*lingering.values(), *([assigned.after] if assigned.after else [])], default=0.0)
    stops = tuple(
        stop
        for stop in _stops(app, assigned, seen, ending=ending)
        if stop.ends is None or stop.ends.name not in lingering
    )
    if ending:
        return Plan(stop=stops, after=after)
    wanted = (_start(app, replica, seen) for replica in assigned.by_replica().values())
    starts = tuple(filter(None, wanted))
    if is_announced(app.status.canary):
        early = {it.placement.name: left for it in starts if (left := _too_early(app, it.placement, now)) > 0}
        starts = tuple(it for it in starts if it.placement.name not in early)
        after = min([*early.values(), *([after] if after else [])], default=0.0)
    return Plan(starts, stops, after=after)


def _too_early(app: AppRecord, placement: PlacementRecord, now: int) -> float:
    """Return in how many seconds a version on trial may start, whose node is known to who routes by then."""
    if placement.node not in app.status.canary.nodes or placement.generation != app.target.generation:
        return 0.0
    left = ANNOUNCED_SECONDS - (now - placement.since) / 1e6
    return left if left <= ANNOUNCED_SECONDS else 0.0


def _is_alone(assigned: Assignment, seen: Snapshot) -> bool:
    """Tell whether the only placement is to run and its instance is all there is: as most passes find it."""
    wanted = assigned.wanted
    if wanted is None or len(assigned.placements) != 1:
        return False
    view = seen.heard(wanted.node)
    return view is not None and len(view.instances) == 1 and seen.instance(wanted) is not None


def _only_start(app: AppRecord, assigned: Assignment, seen: Snapshot) -> Start | None:
    """Return the start of the only placement, where nothing of the app is there: as of a node's new life."""
    if len(assigned.placements) != 1 or is_announced(app.status.canary):
        return None
    (placement,) = assigned.placements
    view = seen.heard(placement.node)
    if placement.role in ENDING or view is None or view.instances:
        return None
    return _start(app, assigned, seen)


def _start(app: AppRecord, replica: Assignment, seen: Snapshot) -> Start | None:
    """Return the start of a replica; None if there is none to make."""
    wanted = replica.wanted
    view = seen.heard(wanted.node) if wanted is not None else None
    if wanted is None or view is None or wanted.instance in view.instances:
        return None  # it is there, or another app's of that name has to go first
    if waits_for(wanted, seen):
        return None  # what is there needs no lease, and would go on beside it
    request = StartInstanceRequest(
        spec=_instance_spec(app, wanted), start_now=_is_tried(replica, wanted, seen)
    )
    return Start(wanted, request)


def stop_orphan(instance: Instance, home: StopInstanceRequest.NewHome | None = None) -> StopInstanceRequest:
    """Return the call that ends an instance which belongs to no placement here; its data stays."""
    request = StopInstanceRequest(name=instance.name, epoch=instance.epoch, app_uid=instance.app_uid)
    return _moved(request, home)


def _nowhere() -> None:
    """Tell nothing of where an app is that ends."""


def _lingering(assigned: Assignment, seen: Snapshot, now: int) -> Iterator[tuple[str, float]]:
    """Yield what serves on for a while where a replica was and cannot be forwarded, and for how long."""
    replicas = assigned.by_replica()
    serving = [it for it in assigned.placements if it.role is Role.CURRENT and is_ready(seen.instance(it))]
    for placement in assigned.placements:
        left = SWITCH_SECONDS - (now - placement.since) / 1e6
        if placement.role is not Role.OUTGOING or not 0 < left <= SWITCH_SECONDS:
            continue
        of, view = replicas[placement.replica], seen.heard(placement.node)
        # What takes its place is its own replica; of one that is taken away, the others.
        heirs = serving if of.wanted is None else [it for it in serving if it == of.current]
        moved = bool(heirs) and all(it.node != placement.node for it in heirs)
        moved = moved and view is not None and not view.forwards
        if moved and not _is_called_off(of, placement) and is_ready(seen.instance(placement)):
            yield placement.name, left


def _stops(app: AppRecord, assigned: Assignment, seen: Snapshot, *, ending: bool) -> Iterator[Stop]:
    replicas = assigned.by_replica()
    # Of what has no placement, and of a replica that is taken away: something else serves.
    anything = any(_is_over(replica, seen) for replica in replicas.values())
    placements = {placement.instance: placement for placement in assigned.placements}
    for name, view in _heard(assigned, seen):
        # Worked out where something is stopped only, which in most passes nothing is.
        home = partial(home_besides, app, assigned, seen, name) if not ending else _nowhere
        told = told_under(app, assigned, name)
        for instance in view.instances.values():
            own = placements.get(instance.name) if is_own(instance, app.uid) else None
            if own is not None and own.node != name:
                own = None
            if instance.state == Instance.STOPPING and not _is_stuck(
                app, instance, _leaves_copy(assigned, own)
            ):
                continue
            if not is_own(instance, app.uid) or (own is not None and own.role is Role.LOST):
                stop = _stop(app, instance, told, copy=False)
                yield Stop(name, _moved(stop, home() if is_own(instance, app.uid) else None))
                continue
            of = replicas[own.replica] if own is not None else None
            replaced = anything if of is None or of.wanted is None else _is_over(of, seen)
            unwanted = of is None or own is not of.wanted
            called_off = of is not None and _is_called_off(of, own)
            if ending or called_off or (unwanted and (replaced or not is_ready(instance))):
                stays = own is not None and _is_kept(app, assigned, own)
                stop = _stop(app, instance, told, _leaves_copy(assigned, own))
                yield Stop(name, _moved(stop, home()), None if stays else own)
        # What was never seen there may come yet, or have left its data: its node has to say that it is gone.
        if not app.deleting or not any(is_own(it, app.uid) for it in view.instances.values()):
            for placement in assigned.placements:
                unseen = placement.node == name and placement.instance not in view.instances
                if unseen and placement.role in ENDING and not _is_kept(app, assigned, placement):
                    stop = _last_stop(app, placement, told, _leaves_copy(assigned, placement))
                    yield Stop(name, _moved(stop, home()), placement)


def _is_over(replica: Assignment, seen: Snapshot) -> bool:
    """Tell whether a swap is over: what took over is ready, or has ended since; what it replaced goes."""
    if replica.incoming is not None or replica.current is None:
        return False  # what comes in and is ready may still have to show that it is well
    instance = seen.instance(replica.current)
    return is_ready(instance) or has_ended(instance)


def _is_called_off(assigned: Assignment, placement: PlacementRecord | None) -> bool:
    """Tell whether a placement was to take over and was taken back: it ends, even if it is ready by now."""
    current = assigned.current
    if placement is None or current is None or placement.role is not Role.OUTGOING:
        return False
    return (placement.epoch, placement.generation) > (current.epoch, current.generation)


def _heard(assigned: Assignment, seen: Snapshot) -> Iterator[tuple[str, NodeView]]:
    for name in dict.fromkeys(placement.node for placement in assigned.placements):
        view = seen.heard(name)
        if view is not None:
            yield name, view


def _is_kept(app: AppRecord, assigned: Assignment, placement: PlacementRecord) -> bool:
    """Tell whether a placement outlives its instance: its node has the app's data, which is to leave it."""
    return not app.deleting and is_last_owner(placement, assigned.placements)


def _leaves_copy(assigned: Assignment, placement: PlacementRecord | None) -> bool:
    return placement is not None and leaves_copy(placement, assigned.placements)


def _is_stuck(app: AppRecord, instance: Instance, copy: bool) -> bool:
    """Tell whether an instance has ended, but its data could not be removed: the stop is to be repeated."""
    own = (copy or app.deleting == DeleteAppRequest.DROP) and is_own(instance, app.uid)
    return own and instance.last_error.reason == "DATA_NOT_REMOVED"


def _stop(app: AppRecord, instance: Instance, told: int, copy: bool) -> StopInstanceRequest:
    """Return the call that ends an instance. Only the app's own data may go with it, or a mere `copy`."""
    if not is_own(instance, app.uid):
        return stop_orphan(instance)
    epoch = max(instance.epoch, told)
    purge = copy or app.deleting == DeleteAppRequest.DROP
    return StopInstanceRequest(name=instance.name, epoch=epoch, app_uid=app.uid, purge_data=purge)


def _moved(request: StopInstanceRequest, home: StopInstanceRequest.NewHome | None) -> StopInstanceRequest:
    if home is not None:
        request.new_home.CopyFrom(home)
    return request


def _last_stop(app: AppRecord, placement: PlacementRecord, told: int, copy: bool) -> StopInstanceRequest:
    """Return the call that has a node say that an instance is not there, and with it the data."""
    # Of a deleted app: an epoch above all, so that a start which is still on its way is refused.
    epoch = max(placement.epoch, app.target.epoch if app.deleting else told) + bool(app.deleting)
    return StopInstanceRequest(
        name=placement.instance,
        epoch=epoch,
        app_uid=app.uid,
        purge_data=copy or app.deleting == DeleteAppRequest.DROP,
    )


def _is_tried(assigned: Assignment, wanted: PlacementRecord, seen: Snapshot) -> bool:
    """Tell whether an instance has to show that it starts, also if it is to be dormant.

    So has what is to replace something; not what is started again as it was before a stop.
    """
    current = assigned.current
    if current is None or wanted is current:
        return False
    return wanted.generation != current.generation or seen.instance(current) is not None


def _instance_spec(app: AppRecord, placement: PlacementRecord) -> InstanceSpec:
    spec = spec_of(placement)
    # What the app has given up may be another's by now, also where its version before goes on serving.
    domains = [domain for domain in spec.domains if domain in app.spec.domains]
    wanted = InstanceSpec(
        name=placement.instance,
        app_uid=app.uid,
        generation=placement.generation,
        epoch=placement.epoch,
        entrypoint=spec.entrypoint,
        domains=domains,
        activation=spec.activation,
        isolation=spec.isolation,
        event_loop=spec.event_loop,
        availability=spec.availability,
        requires_existing_data=placement.has_data,
    )
    wanted.env.update(spec.env)
    wanted.secret_env.update(spec.secret_env)
    for field in _SPEC_MESSAGES:
        if spec.HasField(field):  # type: ignore[arg-type]
            getattr(wanted, field).CopyFrom(getattr(spec, field))
    return wanted

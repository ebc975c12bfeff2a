"""Where an app is answered now, as a node is told that the app leaves. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import StopInstanceRequest
from services.control_plane.placement.assignment import Assignment
from services.control_plane.placement.snapshot import Snapshot, is_ready
from services.control_plane.store.records import AppRecord, PlacementRecord


def new_home(app: AppRecord, node: Node) -> StopInstanceRequest.NewHome | None:
    """Return what a node is told of where an app of its is now; None if the new node serves no HTTP."""
    if not node.http_address:
        return None
    return StopInstanceRequest.NewHome(
        node=node.name,
        http_address=node.http_address,
        domains=app.spec.domains,
        serves_http2=node.serves_http2,
    )


def present_home(app: AppRecord, assigned: Assignment, seen: Snapshot) -> StopInstanceRequest.NewHome | None:
    """Return where an app's requests are answered, or wait for its start; None where it is nowhere yet."""
    there = [it for it in _homes(assigned, seen) if seen.instance(it) is not None]
    return _first_ready(app, there, seen)


def home_besides(
    app: AppRecord, assigned: Assignment, seen: Snapshot, node: str
) -> StopInstanceRequest.NewHome | None:
    """Return where an app is that leaves a node, if it is anywhere else; of several replicas, a ready one."""
    homes = _homes(assigned, seen)
    return None if any(it.node == node for it in homes) else _first_ready(app, homes, seen)


def told_under(app: AppRecord, assigned: Assignment, node: str) -> int:
    """Return the epoch under which a node is told where an app is.

    Below that of what is to run there: the node would take what is told under the same for the newer, and
    forward what it has itself.
    """
    wanted = (replica.wanted for replica in assigned.by_replica().values())
    coming = [it.epoch - 1 for it in wanted if it is not None and it.node == node]
    return min([app.target.epoch, *coming])


def _first_ready(
    app: AppRecord, homes: Sequence[PlacementRecord], seen: Snapshot
) -> StopInstanceRequest.NewHome | None:
    home = next((it for it in homes if is_ready(seen.instance(it))), next(iter(homes), None))
    view = seen.nodes.get(home.node) if home is not None else None
    return new_home(app, view.node) if view is not None else None


def _homes(assigned: Assignment, seen: Snapshot) -> list[PlacementRecord]:
    """Return of each replica what serves, else what is to."""
    homes = (_home_of(replica, seen) for replica in assigned.by_replica().values())
    return [it for it in homes if it is not None]


def _home_of(replica: Assignment, seen: Snapshot) -> PlacementRecord | None:
    home = replica.wanted
    if home is None or (replica.current is not None and not is_ready(seen.instance(home))):
        return replica.current
    return home

"""Environments and nodes as the API shows them: what is stored, with what follows from it now."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from appsupervisor.fleet.v1 import fleet_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.placement.choice import Wish, candidate_of, fits
from services.control_plane.rules.etags import app_etag
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import EnvironmentRecord, NodeRecord
from services.rpc.errors import SupervisorError


def shown_environment(mirror: Mirror, record: EnvironmentRecord, nodes: int) -> pb.Environment:
    """Return an environment with its counts, and whether failover is held in it."""
    shown = pb.Environment()
    shown.CopyFrom(record.environment)
    shown.app_count = mirror.count_in(record.name)
    shown.node_count = nodes
    held = [it.node for it in _nodes_of(mirror, record.name) if it.node.lease_state == pb.Node.ON_HOLD]
    if held:
        shown.conditions.add(
            type="FailoverHeld",
            status=Condition.MET,
            reason="MOST_NODES_LOST",
            message=f"{len(held)} nodes were lost at once, most of the environment: the fault is taken to be "
            "the control plane's. No app goes elsewhere by itself until enough of them are heard; RecoverApp "
            "does it for one.",
            last_transition_time=max((it.update_time for it in held), key=_moment),
        )
    return shown


def _nodes_of(mirror: Mirror, environment: str) -> Iterator[NodeRecord]:
    prefix = f"{environment}/nodes/"
    for record in mirror.nodes.values(prefix):
        if not record.name.startswith(prefix):
            return
        yield record


def _moment(time: Timestamp) -> tuple[int, int]:
    return time.seconds, time.nanos


def shown_node(mirror: Mirror, record: NodeRecord, *, whole: bool = True) -> pb.Node:
    """Return a node with its counts, and whether it may be given apps; its `modules` only where `whole`."""
    shown = pb.Node()
    shown.CopyFrom(record.node)
    if not whole:
        shown.ClearField("modules")
    shown.app_count = mirror.count_on(record.name)
    shown.reserved_memory_bytes = mirror.reserved_on(record.name)
    shown.etag = node_etag(record.node)
    environment = mirror.environments.get(record.environment)
    candidate = candidate_of(
        record.node,
        heard=record.node.state == pb.Node.READY,
        apps=shown.app_count,
        reserved_bytes=shown.reserved_memory_bytes,
    )
    wish = Wish(record.environment, environment is not None and environment.environment.cordoned)
    shown.schedulable = fits(wish, candidate)
    return shown


def node_etag(node: pb.Node) -> str:
    """Return a node's etag; one that no command has ever concerned has that of its first registration."""
    return node.etag or app_etag(f"{node.create_time.ToMicroseconds():08x}"[-8:], 0)


def environment_not_found(name: str) -> SupervisorError:
    """Return the error for an environment that isn't there."""
    return SupervisorError("ENVIRONMENT_NOT_FOUND", f"{name} does not exist.", resource=name)


def node_not_found(name: str) -> SupervisorError:
    """Return the error for a node that isn't there."""
    return SupervisorError("NODE_NOT_FOUND", f"{name} does not exist.", resource=name)
